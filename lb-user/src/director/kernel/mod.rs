//! Native kernel IPVS as a director, over its generic netlink family.
//!
//! Loads the module `ip_vs` when the kernel has not got it; schedulers the kernel loads by itself. Works on the
//! network namespace that the calling thread was in when it opened the director. Not for kernels without the
//! netlink interface (before 2.6.28). IPVS counterpart: `libipvs`.

mod connection;
mod daemon;
mod destination;
mod fingerprint;
pub(super) mod message;
mod service;
pub(super) mod socket;
mod stats;

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufReader};
use std::process::{self, Stdio};

use netlink_packet_core::{DecodeError, parse_u32};

use self::message::{Attributes, Command, FAMILY, Message, info, top};
use self::socket::{Answer, Socket};
use super::{Director, Error, Result};
use crate::table::{
    ConnectionReport, Destination, DestinationKey, DestinationReport, Info, Service, ServiceKey,
    ServiceReport, SyncDaemon, SyncRole, Timeouts,
};

/// The thread's own view: `/proc/net` would be that of the process's first thread.
const CONNECTIONS: &str = "/proc/thread-self/net/ip_vs_conn";
const TABLE: &str = "/proc/thread-self/net/ip_vs";

/// Kernel IPVS in the network namespace of the thread that opened it.
pub struct Kernel {
    socket: Socket,
}

impl Kernel {
    /// Reaches IPVS, after loading its module if need be.
    ///
    /// Fails with [`Error::NoIpvs`] where there is none, and with [`Error::PermissionDenied`] for who is not root.
    pub fn open() -> Result<Self> {
        Self::open_after(Stdio::null())
    }

    /// As [`Kernel::open`], and `modprobe` says on standard error why it cannot load the module, as ipvsadm has it do.
    pub fn open_telling() -> Result<Self> {
        Self::open_after(Stdio::inherit())
    }

    fn open_after(told: Stdio) -> Result<Self> {
        let failed = |error: io::Error| Error::Unavailable(format!("netlink: {error}"));
        let socket = match Socket::open(FAMILY).map_err(failed)? {
            Some(socket) => socket,
            None => {
                load_module(told)?;
                Socket::open(FAMILY).map_err(failed)?.ok_or(Error::NoIpvs)?
            }
        };
        let mut kernel = Self { socket };
        kernel.info()?;
        Ok(kernel)
    }

    fn ask(&mut self, command: Command, attributes: Attributes, answer: Answer) -> Result<Vec<Message>> {
        let message = Message::new(command, attributes);
        self.socket.ask(message, answer).map_err(|error| match error.raw_os_error() {
            Some(number) => refused(command, number),
            None => Error::Unavailable(format!("netlink: {error}")),
        })
    }

    /// A command that only succeeds or fails.
    fn tell(&mut self, command: Command, attributes: Attributes) -> Result<()> {
        self.ask(command, attributes, Answer::Single).map(drop)
    }

    /// The one message that a question brings.
    fn single(&mut self, command: Command, attributes: Attributes) -> Result<Attributes> {
        let mut answers = self.ask(command, attributes, Answer::Single)?;
        let answer = answers.pop().ok_or_else(|| Error::Unavailable(format!("no answer to {command:?}")))?;
        Ok(answer.attributes)
    }

    fn about_destination(
        &mut self,
        command: Command,
        service: &ServiceKey,
        destination: Attributes,
    ) -> Result<()> {
        let attributes = Attributes::default()
            .put_nest(top::SERVICE, &service::encode_key(service))
            .put_nest(top::DESTINATION, &destination);
        self.tell(command, attributes)
    }
}

/// Kernel IPVS has the same timeouts for all services.
fn refuse_own_timeouts(service: &Service) -> Result<()> {
    match service.own_timeouts {
        None | Some(Timeouts::NONE) => Ok(()),
        Some(_) => Err(Error::Unsupported("Kernel IPVS has no timeouts of a service's own".into())),
    }
}

impl Director for Kernel {
    fn info(&mut self) -> Result<Info> {
        let answer = self.single(Command::GetInfo, Attributes::default())?;
        Ok(Info { version: number(&answer, info::VERSION)?, table_size: number(&answer, info::TABLE_SIZE)? })
    }

    fn services(&mut self) -> Result<Vec<ServiceReport>> {
        let answers = self.ask(Command::GetService, Attributes::default(), Answer::Dump)?;
        answers.iter().map(|answer| one_service(&answer.attributes)).collect()
    }

    fn service(&mut self, key: &ServiceKey) -> Result<ServiceReport> {
        one_service(&self.single(Command::GetService, about_service(key))?)
    }

    fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationReport>> {
        let answers = self.ask(Command::GetDestination, about_service(service), Answer::Dump)?;
        let decode = |answer: &Message| {
            let nest = answer.attributes.find(top::DESTINATION)?;
            destination::decode(nest, service.family())
        };
        answers.iter().map(|answer| decode(answer).map_err(unreadable)).collect()
    }

    fn has_own_timeouts(&self) -> bool {
        false
    }

    fn add_service(&mut self, service: &Service) -> Result<()> {
        refuse_own_timeouts(service)?;
        let attributes = Attributes::default().put_nest(top::SERVICE, &service::encode(service));
        self.tell(Command::NewService, attributes)
    }

    fn edit_service(&mut self, service: &Service) -> Result<()> {
        refuse_own_timeouts(service)?;
        let attributes = Attributes::default().put_nest(top::SERVICE, &service::encode(service));
        self.tell(Command::SetService, attributes)
    }

    fn delete_service(&mut self, key: &ServiceKey) -> Result<()> {
        self.tell(Command::DeleteService, about_service(key))
    }

    fn flush(&mut self) -> Result<()> {
        self.tell(Command::Flush, Attributes::default())
    }

    fn add_destination(&mut self, service: &ServiceKey, destination: &Destination) -> Result<()> {
        self.about_destination(Command::NewDestination, service, destination::encode(destination))
    }

    fn edit_destination(&mut self, service: &ServiceKey, destination: &Destination) -> Result<()> {
        self.about_destination(Command::SetDestination, service, destination::encode(destination))
    }

    fn delete_destination(&mut self, service: &ServiceKey, destination: &DestinationKey) -> Result<()> {
        self.about_destination(Command::DeleteDestination, service, destination::encode_key(destination))
    }

    fn zero(&mut self, service: Option<&ServiceKey>) -> Result<()> {
        self.tell(Command::Zero, service.map(about_service).unwrap_or_default())
    }

    fn timeouts(&mut self) -> Result<Timeouts> {
        let answer = self.single(Command::GetConfig, Attributes::default())?;
        Ok(Timeouts {
            tcp: number(&answer, top::TIMEOUT_TCP)?,
            tcp_fin: number(&answer, top::TIMEOUT_TCP_FIN)?,
            udp: number(&answer, top::TIMEOUT_UDP)?,
        })
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        let attributes = Attributes::default()
            .put_u32(top::TIMEOUT_TCP, timeouts.tcp)
            .put_u32(top::TIMEOUT_TCP_FIN, timeouts.tcp_fin)
            .put_u32(top::TIMEOUT_UDP, timeouts.udp);
        self.tell(Command::SetConfig, attributes)
    }

    fn daemons(&mut self) -> Result<Vec<SyncDaemon>> {
        let answers = self.ask(Command::GetDaemon, Attributes::default(), Answer::Dump)?;
        let decode = |answer: &Message| daemon::decode(answer.attributes.find(top::DAEMON)?);
        let mut daemons: Vec<SyncDaemon> =
            answers.iter().map(|answer| decode(answer).map_err(unreadable)).collect::<Result<_>>()?;
        daemons.sort_by_key(|daemon| daemon.role);
        Ok(daemons)
    }

    fn start_daemon(&mut self, daemon: &SyncDaemon) -> Result<()> {
        let attributes = Attributes::default().put_nest(top::DAEMON, &daemon::encode(daemon));
        self.tell(Command::NewDaemon, attributes)
    }

    fn stop_daemon(&mut self, role: SyncRole) -> Result<()> {
        let attributes = Attributes::default().put_nest(top::DAEMON, &daemon::encode_role(role));
        match self.tell(Command::DeleteDaemon, attributes) {
            // The thread was stopped before it ran for the first time.
            Err(Error::Errno(libc::EINTR)) => Ok(()),
            told => told,
        }
    }

    /// Tells everything but a service's scheduler flags and engine, and a destination's thresholds and tunnel settings: asking
    /// for services, or for each one's destinations, costs more than to have the kernel print them all.
    fn fingerprint(&mut self) -> Result<u64> {
        let failed = |error: io::Error| Error::Unavailable(format!("{TABLE}: {error}"));
        let mut hasher = DefaultHasher::new();
        self.timeouts()?.hash(&mut hasher);
        let file = File::open(TABLE).map_err(failed)?;
        fingerprint::add_table(BufReader::with_capacity(1 << 16, file), &mut hasher).map_err(failed)?;
        Ok(hasher.finish())
    }

    fn connections(&mut self) -> Result<Vec<ConnectionReport>> {
        let failed = |error: io::Error| Error::Unavailable(format!("{CONNECTIONS}: {error}"));
        let file = File::open(CONNECTIONS).map_err(failed)?;
        connection::read(BufReader::new(file)).map_err(failed)
    }
}

fn about_service(key: &ServiceKey) -> Attributes {
    Attributes::default().put_nest(top::SERVICE, &service::encode_key(key))
}

fn one_service(attributes: &Attributes) -> Result<ServiceReport> {
    attributes.find(top::SERVICE).and_then(service::decode).map_err(unreadable)
}

fn number(attributes: &Attributes, kind: u16) -> Result<u32> {
    attributes.find(kind).and_then(parse_u32).map_err(unreadable)
}

/// The kernel holds something that our words cannot say, such as a service of a protocol that it never balances.
fn unreadable(error: DecodeError) -> Error {
    Error::Unsupported(format!("kernel IPVS has {error}"))
}

/// Runs modprobe as ipvsadm does; whether it succeeds shows afterwards.
fn load_module(told: Stdio) -> Result<()> {
    match process::Command::new("/sbin/modprobe").args(["--", "ip_vs"]).stderr(told).status() {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = format!("this kernel has no IPVS, and /sbin/modprobe does not start: {error}");
            Err(Error::Unavailable(text))
        }
    }
}

/// What an error number means as the answer to a command.
fn refused(command: Command, number: i32) -> Error {
    use Command::*;
    match (number, command) {
        (libc::EPERM, _) => Error::PermissionDenied,
        (libc::EINVAL, _) => Error::Invalid,
        (libc::ERANGE, _) => Error::OutOfRange,
        (libc::EEXIST, NewService) => Error::ServiceExists,
        (libc::EEXIST, NewDestination) => Error::DestinationExists,
        (libc::EEXIST, NewDaemon) => Error::DaemonRuns,
        (libc::ENOENT, NewService | SetService) => Error::UnknownScheduler,
        (libc::ENOENT, SetDestination | DeleteDestination) => Error::NoSuchDestination,
        (libc::ESRCH, DeleteDaemon) => Error::NoDaemon,
        (
            libc::ESRCH,
            SetService | DeleteService | GetService | Zero | NewDestination | SetDestination
            | DeleteDestination,
        ) => Error::NoSuchService,
        _ => Error::Errno(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_means_what_the_command_makes_of_it() {
        let text = |command, number| refused(command, number).to_string();
        assert_eq!(text(Command::NewService, libc::EEXIST), "Service already exists");
        assert_eq!(text(Command::NewDestination, libc::EEXIST), "Destination already exists");
        assert_eq!(text(Command::NewDaemon, libc::EEXIST), "Daemon has already run");
        assert_eq!(text(Command::SetService, libc::ENOENT), "Scheduler or persistence engine not found");
        assert_eq!(text(Command::DeleteDestination, libc::ENOENT), "No such destination");
        assert!(matches!(refused(Command::Zero, libc::ESRCH), Error::NoSuchService));
        assert!(matches!(refused(Command::DeleteDaemon, libc::ESRCH), Error::NoDaemon));
        assert!(matches!(refused(Command::NewDaemon, libc::ENODEV), Error::Errno(libc::ENODEV)));
        assert!(matches!(refused(Command::GetInfo, libc::EPERM), Error::PermissionDenied));
    }
}
