//! The kernel's links, routes and neighbours: one question at a time, blocking.
//!
//! A door to rtnetlink, which is asynchronous; nothing here waits for anything but the kernel's answer.

use std::net::IpAddr;

use futures_util::stream::{Stream, StreamExt, TryStreamExt};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, NeighbourAddRequest};
use tokio::runtime::{Builder, Runtime};

use crate::director::{Error, errno_text};

/// Why the kernel did not answer as wished.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// With this error number.
    #[error("{}", errno_text(*.0))]
    Errno(i32),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

impl From<rtnetlink::Error> for Refusal {
    fn from(error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(error) => Self::Errno(-error.raw_code()),
            other => Self::Other(other.to_string()),
        }
    }
}

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Routing {
    // Dropped before the runtime that it runs on.
    handle: Handle,
    runtime: Runtime,
}

/// Where packets to an address go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Out of an interface to a neighbour: a gateway, or the address itself.
    Neighbour {
        /// The interface's index.
        interface: u32,
        /// The neighbour's address.
        address: IpAddr,
        /// The address that this machine has on that way, if routing prefers one.
        source: Option<IpAddr>,
    },
    /// To this machine.
    Local,
    /// To more than one machine: broadcast, multicast.
    Many,
    /// Nowhere.
    None,
}

impl Routing {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::Unavailable(format!("no routing socket: {error}"));
        let runtime = Builder::new_current_thread().enable_io().build().map_err(failed)?;
        let entered = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
        drop(entered);
        runtime.spawn(connection);
        Ok(Self { handle, runtime })
    }

    fn all<T>(&self, stream: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<Vec<T>, Refusal> {
        Ok(self.runtime.block_on(stream.try_collect())?)
    }

    /// Lists the interfaces.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn links(&mut self) -> Result<Vec<LinkMessage>, Refusal> {
        self.all(self.handle.link().get().execute())
    }

    /// Asks where packets of this machine to an address go.
    ///
    /// # Errors
    ///
    /// What the kernel says, unless it is that there is no way.
    pub fn way(&mut self, address: IpAddr) -> Result<Way, Refusal> {
        let mut message = RouteMessage::default();
        let (family, length, destination) = match address {
            IpAddr::V4(address) => (AddressFamily::Inet, 32, RouteAddress::Inet(address)),
            IpAddr::V6(address) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(address)),
        };
        message.header.address_family = family;
        message.header.destination_prefix_length = length;
        message.attributes.push(RouteAttribute::Destination(destination));
        let answer = self.handle.route().get(message).execute();
        let route = match self.runtime.block_on(async { std::pin::pin!(answer).try_next().await }) {
            Ok(Some(route)) => route,
            Ok(None) => return Ok(Way::None),
            Err(error) => {
                return match Refusal::from(error) {
                    Refusal::Errno(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL) => {
                        Ok(Way::None)
                    }
                    other => Err(other),
                };
            }
        };
        match route.header.kind {
            RouteType::Unicast => {}
            RouteType::Local => return Ok(Way::Local),
            RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => return Ok(Way::Many),
            _ => return Ok(Way::None),
        }
        let interface = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let gateway = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(IpAddr::V4(*gateway)),
            RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => Some(IpAddr::V6(*gateway)),
            _ => None,
        });
        let source = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(RouteAddress::Inet(source)) => Some(IpAddr::V4(*source)),
            RouteAttribute::PrefSource(RouteAddress::Inet6(source)) => Some(IpAddr::V6(*source)),
            _ => None,
        });
        Ok(match interface {
            Some(interface) => Way::Neighbour { interface, address: gateway.unwrap_or(address), source },
            None => Way::None,
        })
    }

    /// Lists the neighbours of both families.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn neighbours(&mut self) -> Result<Vec<NeighbourMessage>, Refusal> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            all.extend(self.all(self.handle.neighbours().get().set_address_family(family).execute())?);
        }
        Ok(all)
    }

    /// Adds a neighbour, as `prepare` makes it; of one that is there, only with `replace`.
    ///
    /// # Errors
    ///
    /// What the kernel says; EEXIST when it is there already.
    pub fn add_neighbour(
        &mut self,
        interface: u32,
        address: IpAddr,
        replace: bool,
        prepare: impl FnOnce(&mut NeighbourMessage),
    ) -> Result<(), Refusal> {
        let mut request: NeighbourAddRequest = self.handle.neighbours().add(interface, address);
        if replace {
            request = request.replace();
        }
        prepare(request.message_mut());
        Ok(self.runtime.block_on(request.execute())?)
    }

    /// Deletes a neighbour.
    ///
    /// # Errors
    ///
    /// What the kernel says; ENOENT when it is not there.
    pub fn delete_neighbour(&mut self, neighbour: NeighbourMessage) -> Result<(), Refusal> {
        Ok(self.runtime.block_on(self.handle.neighbours().del(neighbour).execute())?)
    }

    /// Makes an interface's `clsact` qdisc.
    ///
    /// # Errors
    ///
    /// What the kernel says; EEXIST when it has one, or the older `ingress` in its place.
    pub fn add_clsact(&mut self, interface: u32) -> Result<(), Refusal> {
        let kind = vec![TcAttribute::Kind("clsact".into())];
        let message = TcMessage::from_parts(clsact(interface), kind);
        self.tell(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Deletes an interface's `clsact` qdisc with all its filters.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn delete_clsact(&mut self, interface: u32) -> Result<(), Refusal> {
        let message = TcMessage::from_parts(clsact(interface), Vec::new());
        self.tell(RouteNetlinkMessage::DelQueueDiscipline(message), 0)
    }

    /// Puts a filter on the way out of an interface, in the place of one that is there under its number.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn put_filter(&mut self, header: TcHeader, attributes: Vec<TcAttribute>) -> Result<(), Refusal> {
        let message = TcMessage::from_parts(header, attributes);
        self.tell(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE)
    }

    /// Deletes a filter.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn delete_filter(&mut self, header: TcHeader) -> Result<(), Refusal> {
        let message = TcMessage::from_parts(header, Vec::new());
        self.tell(RouteNetlinkMessage::DelTrafficFilter(message), 0)
    }

    /// Lists the filters of an interface's `clsact` qdisc, on the way out or in.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn filters(&mut self, interface: u32, out: bool) -> Result<Vec<TcMessage>, Refusal> {
        let request = self.handle.traffic_filter(interface.cast_signed()).get();
        let request = if out { request.egress() } else { request.ingress() };
        self.all(request.execute())
    }

    /// Has the kernel do something.
    fn tell(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Refusal> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.handle.request(request)?;
        while let Some(answer) = self.runtime.block_on(answers.next()) {
            if let NetlinkPayload::Error(error) = answer.payload {
                return Err(rtnetlink::Error::NetlinkError(error).into());
            }
        }
        Ok(())
    }
}

/// What names an interface's `clsact` qdisc.
fn clsact(interface: u32) -> TcHeader {
    TcHeader {
        index: interface.cast_signed(),
        handle: TcHandle { major: 0xffff, minor: 0 },
        parent: TcHandle::CLSACT,
        ..TcHeader::default()
    }
}
