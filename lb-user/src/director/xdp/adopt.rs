//! Connections and persistence templates that another director made, taken over into the connection table.
//!
//! What a listing does not tell is the forwarding method, which is the destination's in any case; whether an answer by direct
//! routing has come by, which is taken for not so until the next comes; and a template's timeout, which is taken to be the
//! service's. Records of sync messages tell the latter two. IPVS counterpart: `ip_vs_proc_conn`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use lb_common::connection::{self, Addresses, Adopted, Adoption, CLIENT_SIDE, KEEP, RENEW, SYNCED, TEMPLATE};
use lb_common::destination::DestinationId;
use lb_common::forward::ForwardingMethod;
use lb_common::persistence::{INVALID_PORT, template_protocol};
use lb_common::protocol::{Protocol, state};
use lb_common::service::{Service as ServiceRecord, flags};
use lb_common::settings::Settings;
use lb_common::sip::{self, CallId};
use lb_common::sync::Record;
use lb_common::sync::backup::{self, Accepted};
use lb_common::tuple::{IPV6, Tuple, handle};

use super::maps::Maps;
use super::{address_bytes, destination, service, set};
use crate::director::Result;
use crate::table::{ConnectionReport, DestinationKey, Family, ServiceKey};

/// What became of connections that were to be taken over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Takeover {
    /// Now in the table.
    pub taken: usize,
    /// In the table already.
    pub known: usize,
    /// Left where they are, by reason.
    pub left: BTreeMap<Left, usize>,
}

/// A reason to leave a connection where it is.
pub type Left = &'static str;

/// The reason that may pass: somebody adds the destination.
pub const NO_DESTINATION: Left = "of a destination that is not in the table";
/// The reason that may pass as well.
const NO_ROOM: Left = "no room in the connection table";
const USELESS: Left = "templates that serve no more";
const OF_ENGINE: Left = backup::Unfit::Engine.explanation();
const NO_STATE: Left = "in a state that is not known";

/// What became of one connection.
pub type Fate = std::result::Result<Adopted, Left>;

/// Whether a record that tells of a known connection changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// No.
    Keep,
    /// Yes, as IPVS's backup does.
    Renew,
}

/// The port of FTP's control connections.
const FTP: u16 = 21;

/// Takes over the connections of a listing.
pub fn adopt(maps: &Maps, connections: &[ConnectionReport]) -> Result<Takeover> {
    let settings = maps.settings();
    let told = connections.iter().map(|connection| Foreign::listed(connection, &settings));
    let mut takeover = Takeover::default();
    for fate in adopt_all(maps, &mut Places::default(), &settings, told, KEEP)? {
        match fate {
            Ok(Adopted::Taken) => takeover.taken += 1,
            Ok(_) => takeover.known += 1,
            Err(reason) => *takeover.left.entry(reason).or_default() += 1,
        }
    }
    Ok(takeover)
}

/// Takes over what sync messages tell, and says of each record what became of it.
pub fn adopt_records(
    maps: &Maps,
    places: &mut Places,
    records: &[Record<'_>],
    policy: Policy,
) -> Result<Vec<Fate>> {
    let settings = maps.settings();
    let told = records.iter().map(|record| Foreign::told(record, &settings));
    let policy = if policy == Policy::Renew { RENEW } else { KEEP };
    adopt_all(maps, places, &settings, told, policy)
}

/// Takes over what can be: templates first, so that connections find those that control them.
fn adopt_all(
    maps: &Maps,
    places: &mut Places,
    settings: &Settings,
    all: impl Iterator<Item = std::result::Result<Foreign, Left>>,
    policy: u8,
) -> Result<Vec<Fate>> {
    places.refresh(maps, settings);
    let mut fates = Vec::new();
    let mut wanted = Vec::new();
    for (number, foreign) in all.enumerate() {
        let adoption = foreign.and_then(|foreign| adoption(maps, &foreign, places, settings, policy));
        fates.push(adoption.map(|_| Adopted::Failed));
        wanted.extend(adoption.map(|adoption| (number, adoption)));
    }
    wanted.sort_by_key(|(_, adoption)| adoption.role != TEMPLATE);
    let adoptions: Vec<Adoption> = wanted.iter().map(|(_, adoption)| *adoption).collect();
    for ((number, _), adopted) in wanted.into_iter().zip(maps.adopt(&adoptions)?) {
        fates[number] = if adopted == Adopted::Failed { Err(NO_ROOM) } else { Ok(adopted) };
    }
    Ok(fates)
}

/// A connection or template as another director has it, however that became known.
#[derive(Debug, Clone, Copy)]
struct Foreign {
    /// None of a firewall mark's template.
    protocol: Option<Protocol>,
    is_template: bool,
    client: (IpAddr, u16),
    virtual_end: (IpAddr, u16),
    destination: (IpAddr, u16),
    /// The firewall mark of its service, 0 for one with an address, if that is told.
    mark: Option<u32>,
    state: u8,
    /// [`connection::INACTIVE`], [`connection::NO_OUTPUT`], [`SYNCED`].
    flags: u8,
    /// Ticks that it has left.
    lifetime: u32,
    /// The call that a template is for.
    call: Option<CallId>,
}

impl Foreign {
    /// As a listing tells it.
    fn listed(told: &ConnectionReport, settings: &Settings) -> std::result::Result<Self, Left> {
        let is_template = told.client_port == 0;
        if is_template && told.virtual_port == INVALID_PORT {
            return Err(USELESS);
        }
        let call = match &told.engine {
            Some((name, data)) if is_template && name == sip::NAME => {
                Some(CallId::of(data, settings.seed).ok_or(OF_ENGINE)?)
            }
            // Not its client's, which it would be taken for.
            Some(_) => return Err(OF_ENGINE),
            None => None,
        };
        let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == told.protocol);
        let state = match (protocol, is_template) {
            (_, true) => template_state(&told.state),
            (Some(protocol), false) => state::from_name(protocol, &told.state),
            (None, false) => None,
        };
        let state = state.ok_or(NO_STATE)?;
        let inactive = if state::is_active(state) { 0 } else { connection::INACTIVE };
        Ok(Self {
            protocol,
            is_template,
            client: (told.client, told.client_port),
            virtual_end: (told.virtual_address, told.virtual_port),
            destination: (told.destination, told.destination_port),
            // Of a connection's a listing says nothing.
            mark: (told.protocol == "IP").then(|| mark_in(told.virtual_address)),
            state,
            flags: inactive | connection::NO_OUTPUT,
            // The listing leaves out the part of the last second.
            lifetime: told.expires.saturating_add(1).saturating_mul(settings.ticks_per_second),
            call,
        })
    }

    /// As a sync message tells it.
    fn told(told: &Record<'_>, settings: &Settings) -> std::result::Result<Self, Left> {
        let accepted = backup::accept(told).map_err(backup::Unfit::explanation)?;
        let Accepted { protocol, is_template, state, inactive, no_output, seconds } = accepted;
        if is_template && told.virtual_port == INVALID_PORT {
            return Err(USELESS);
        }
        let call = match told.engine_data {
            Some(data) => Some(CallId::of(data, settings.seed).ok_or(OF_ENGINE)?),
            None => None,
        };
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        Ok(Self {
            protocol,
            is_template,
            client: (told.client, told.client_port),
            virtual_end: (told.virtual_address, told.virtual_port),
            destination: (told.destination, told.destination_port),
            mark: Some(if protocol.is_none() { mark_in(told.virtual_address) } else { told.mark }),
            state,
            flags: SYNCED | flag(inactive, connection::INACTIVE) | flag(no_output, connection::NO_OUTPUT),
            lifetime: match seconds {
                Some(seconds) => seconds.saturating_mul(settings.ticks_per_second),
                None => settings.timeouts[usize::from(state)],
            },
            call,
        })
    }
}

/// A connection or template, as the program takes it.
fn adoption(
    maps: &Maps,
    foreign: &Foreign,
    places: &mut Places,
    settings: &Settings,
    policy: u8,
) -> std::result::Result<Adoption, Left> {
    let Foreign { protocol, is_template, client, virtual_end, state, .. } = *foreign;
    let Place { service, is_persistent, has_engine, id, method } =
        places.find(maps, foreign).ok_or(NO_DESTINATION)?;
    if is_template && (!is_persistent || has_engine != foreign.call.is_some()) {
        return Err(USELESS);
    }
    let family = if client.0.is_ipv6() { IPV6 } else { 0 };
    let number = protocol.map_or(0, Protocol::number);
    let protocol = if is_template { template_protocol(number) } else { number } | family;
    let raw = |(address, port): (IpAddr, u16)| (raw_address(address, settings.seed), port.to_be());
    let mut virtual_raw = raw(virtual_end);
    if number == 0 {
        virtual_raw.0 = mark_in(virtual_end.0).to_be();
    }
    let mut tuple = Tuple::from_raw(protocol, raw(client), virtual_raw);
    if let Some(call) = &foreign.call {
        tuple = sip::key(tuple, call.digest);
        maps.remember_call(call);
    }
    let unseen = if method == ForwardingMethod::Masquerade.number() { connection::NO_OUTPUT } else { 0 };
    let words = |address| zerocopy::transmute!(address_bytes(address));
    Ok(Adoption {
        addresses: tuple.addresses,
        ports: tuple.ports,
        service,
        destination: id,
        lifetime: foreign.lifetime,
        port: foreign.destination.1.to_be(),
        protocol,
        state,
        flags: foreign.flags & !unseen,
        role: if is_template { TEMPLATE } else { CLIENT_SIDE },
        policy,
        reserved: 0,
        call: foreign.call.map_or(0, |call| call.digest),
        beside: Addresses {
            source: words(client.0),
            destination: words(virtual_end.0),
            other: [0; 2],
            reserved: [0; 2],
        },
    })
}

/// The number of a template's state by the name that a listing has for it.
fn template_state(name: &str) -> Option<u8> {
    [0, state::ASSURED].into_iter().find(|number| state::name(*number) == name)
}

/// The firewall mark that a template of its has in the place of an address.
fn mark_in(address: IpAddr) -> u32 {
    let [a, b, c, d, ..] = address_bytes(address);
    u32::from_be_bytes([a, b, c, d])
}

/// What a tuple has of an address.
fn raw_address(address: IpAddr, seed: u64) -> u32 {
    match address {
        IpAddr::V4(address) => u32::from_ne_bytes(address.octets()),
        IpAddr::V6(address) => handle(zerocopy::transmute!(address.octets()), seed),
    }
}

/// Where a connection belongs.
#[derive(Debug)]
struct Place {
    /// Its service's slot.
    service: u32,
    /// Whether that one makes templates.
    is_persistent: bool,
    /// Whether those are of calls.
    has_engine: bool,
    id: DestinationId,
    /// The number of its forwarding method.
    method: u8,
}

/// A service's slot and record, and its destinations with their methods.
type Known = (u32, ServiceRecord, Vec<(DestinationKey, DestinationId, u8)>);

/// The destinations of services, found once each as long as nobody changes the table.
#[derive(Debug, Default)]
pub struct Places {
    /// The table's revision, once there is one.
    revision: Option<u32>,
    found: HashMap<ServiceKey, Option<Known>>,
    /// The services by firewall mark.
    marks: Vec<ServiceKey>,
}

impl Places {
    /// Forgets what may be true no more. Whether there was anything to forget.
    pub fn refresh(&mut self, maps: &Maps, settings: &Settings) -> bool {
        if self.revision == Some(settings.revision) {
            return false;
        }
        let marks = service::all(maps).map(|(_, record)| service::key(&record));
        let marks = marks.filter(|key| matches!(key, ServiceKey::Mark { .. })).collect();
        *self = Self { revision: Some(settings.revision), found: HashMap::new(), marks };
        true
    }

    /// The destination of a connection or template, by the service that would take it.
    fn find(&mut self, maps: &Maps, foreign: &Foreign) -> Option<Place> {
        let Foreign { virtual_end, destination: (address, port), .. } = *foreign;
        let of_address = foreign.protocol.filter(|_| foreign.mark.is_none_or(|mark| mark == 0));
        let of_address = of_address.map(|protocol| services_of(protocol, virtual_end));
        let family = if foreign.client.0.is_ipv6() { Family::V6 } else { Family::V4 };
        let may_be_its = |key: &&ServiceKey| {
            matches!(key, ServiceKey::Mark { mark, family: its }
                if *its == family && foreign.mark.is_none_or(|wanted| wanted == *mark))
        };
        let mut keys = of_address.into_iter().flatten().chain(self.marks.iter().filter(may_be_its).copied());
        keys.find_map(|key| {
            let known = self.found.entry(key).or_insert_with(|| list(maps, &key));
            let (service, record, all) = known.as_ref()?;
            let is_persistent = record.flags & flags::PERSISTENT != 0;
            // Of a persistent service only packets to its own port get the destination's; one without a port keeps the
            // packet's in any case.
            let any_port = is_persistent && (port == 0 || u16::from_be(record.port) != virtual_end.1);
            let (_, id, method) = all
                .iter()
                .filter(|(key, ..)| key.address == address)
                .find(|(key, ..)| key.port == port || key.port == 0 || any_port)?;
            let has_engine = record.engine != [0; 16];
            Some(Place { service: *service, is_persistent, has_engine, id: *id, method: *method })
        })
    }
}

/// The services with an address that may have made a connection or template, in the order in which they are asked: that
/// of its port, FTP's, which takes more than that, the one for any.
fn services_of(protocol: Protocol, (address, port): (IpAddr, u16)) -> [ServiceKey; 3] {
    let ftp = if protocol == Protocol::Tcp { FTP } else { 0 };
    [port, ftp, 0].map(|port| ServiceKey::Address { protocol, address, port })
}

fn list(maps: &Maps, service: &ServiceKey) -> Option<Known> {
    let (slot, record) = service::find(maps, service).ok()?;
    let ids = set::read(maps, &record).ids;
    let place = |id| Some((destination::key(maps, id)?, id, maps.destinations.read(id)?.method));
    Some((slot, record, ids.into_iter().filter_map(place).collect()))
}
