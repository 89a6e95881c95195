//! The backup: receives messages and has the packet program take what they tell.
//!
//! Kernel IPVS makes a connection also where its destination is not there and binds it when that is added; here it waits
//! outside the table for the same. One that starts asks the masters for all that they have, which kernel IPVS does not
//! know; what comes then only fills gaps. IPVS counterpart: `ip_vs_process_message`, `sync_thread_backup`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use lb_common::connection::Adopted;
use lb_common::sync::backup::accept;
use lb_common::sync::{Message, Note, Record, TEMPLATE};

use super::descriptors;
use super::socket::{self, Interface, refused};
use crate::director::Result;
use crate::director::xdp::Xdp;
use crate::director::xdp::adopt::{NO_DESTINATION, Places, Policy};
use crate::director::xdp::daemon::Tally;
use crate::director::xdp::sync::Told;
use crate::table::SyncDaemon;

/// Messages that are taken together.
const AT_ONCE: usize = 256;
/// Connections that wait for their destinations.
const WAITING: usize = 1 << 16;
/// How long a backup waits for an answer before it asks again, at first and at most.
const ASKS_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(64)];

/// A backup.
#[derive(Debug)]
pub struct Backup {
    daemon: SyncDaemon,
    group: SocketAddr,
    /// What all are told.
    heard: UdpSocket,
    /// What this one alone is told, and how it asks for that.
    own: UdpSocket,
    places: Places,
    waiting: HashMap<Flow, Waiting>,
    /// The table's revision when those that wait were last looked at.
    revision: u32,
    asking: Option<Asking>,
    tally: Tally,
}

/// A connection or template, as records tell one from another.
type Flow = (u8, bool, IpAddr, u16, IpAddr, u16, Option<Box<[u8]>>);

#[derive(Debug)]
struct Waiting {
    told: Told,
    until: Instant,
}

/// Asking for all that the masters have.
#[derive(Debug)]
struct Asking {
    again: Instant,
    pause: Duration,
    /// Records that came since the last time, by whom.
    heard: HashMap<SocketAddr, u32>,
}

impl Backup {
    /// A backup on its interface.
    pub fn new(daemon: &SyncDaemon, interface: &Interface) -> Result<Self> {
        let group = socket::group(daemon, interface);
        let heard = socket::receiver(&group, interface).map_err(|error| refused(&error))?;
        let own = socket::sender(&group, &interface.name, daemon.ttl, false);
        let own =
            own.and_then(|own| own.set_nonblocking(true).map(|()| own)).map_err(|error| refused(&error))?;
        Ok(Self {
            daemon: daemon.clone(),
            group,
            heard,
            own,
            places: Places::default(),
            waiting: HashMap::new(),
            revision: 0,
            asking: Some(Asking { again: Instant::now(), pause: ASKS_AGAIN[0], heard: HashMap::new() }),
            tally: Tally::default(),
        })
    }

    /// What wakes it.
    pub fn readable(&self) -> Vec<BorrowedFd<'_>> {
        descriptors([&self.heard, &self.own])
    }

    /// How long there is nothing to do, if nothing comes.
    pub fn rest(&self) -> Duration {
        let rest = |asking: &Asking| asking.again.saturating_duration_since(Instant::now());
        self.asking.as_ref().map_or(Duration::MAX, rest).min(Duration::from_secs(1))
    }

    /// What it has done.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Takes what has come, asks if it is time to, and looks after what waits.
    pub fn work(&mut self, xdp: &mut Xdp) -> Result<()> {
        let messages = received(&self.heard, self.daemon.max_length);
        self.take(xdp, &messages, Policy::Renew)?;
        let messages = received(&self.own, u16::MAX);
        self.count_answers(&messages);
        self.take(xdp, &messages, Policy::Keep)?;
        self.ask();
        self.place_waiting(xdp)?;
        self.tally.waiting = self.waiting.len() as u64;
        Ok(())
    }

    /// Takes the records of messages.
    fn take(&mut self, xdp: &mut Xdp, messages: &[(Vec<u8>, SocketAddr)], policy: Policy) -> Result<()> {
        let mut records = Vec::new();
        for (bytes, _) in messages {
            let message = Message::read(bytes);
            if message.is_ok_and(|message| message.note().is_some()) {
                continue;
            }
            self.tally.messages += 1;
            let Ok(message) = message else {
                self.tally.leave("messages that are damaged");
                continue;
            };
            if self.daemon.sync_id != 0 && u32::from(message.sync_id) != self.daemon.sync_id {
                self.tally.leave("messages of another syncid");
                continue;
            }
            for record in message.records() {
                self.tally.records += 1;
                match record {
                    Ok(record) => records.push(record),
                    Err(_) => self.tally.leave("records that are damaged"),
                }
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        for (record, fate) in records.iter().zip(xdp.adopt_records(&mut self.places, &records, policy)?) {
            match fate {
                Ok(adopted) => {
                    self.waiting.remove(&flow(record));
                    match adopted {
                        Adopted::Taken => self.tally.taken += 1,
                        Adopted::Renewed => self.tally.renewed += 1,
                        Adopted::Known | Adopted::Failed => {}
                    }
                }
                Err(NO_DESTINATION) => self.wait_for_destination(record),
                Err(reason) => self.tally.leave(reason),
            }
        }
        Ok(())
    }

    fn wait_for_destination(&mut self, record: &Record<'_>) {
        let flow = flow(record);
        if self.waiting.len() >= WAITING && !self.waiting.contains_key(&flow) {
            self.tally.leave(NO_DESTINATION);
            return;
        }
        let seconds = accept(record).ok().and_then(|accepted| accepted.seconds).unwrap_or(60);
        let until = Instant::now() + Duration::from_secs(seconds.into());
        self.waiting.insert(flow, Waiting { told: Told::of(record), until });
    }

    /// Takes what waits and can be placed since the table has changed; what comes to its end is forgotten.
    fn place_waiting(&mut self, xdp: &mut Xdp) -> Result<()> {
        let revision = xdp.maps().settings().revision;
        if self.waiting.is_empty() || revision == self.revision {
            self.revision = revision;
            return Ok(());
        }
        self.revision = revision;
        let now = Instant::now();
        self.waiting.retain(|_, waiting| waiting.until > now);
        let left = |waiting: &Waiting| (waiting.until - now).as_secs().max(1) as u32;
        let waiting: Vec<_> =
            self.waiting.values().map(|waiting| (left(waiting), waiting.told.clone())).collect();
        let records: Vec<Record<'_>> =
            waiting.iter().map(|(left, told)| Record { timeout: Some(*left), ..told.record() }).collect();
        // A packet may have made such a connection meanwhile.
        let fates = xdp.adopt_records(&mut self.places, &records, Policy::Keep)?;
        for (record, fate) in records.iter().zip(fates).filter(|(_, fate)| *fate != Err(NO_DESTINATION)) {
            self.waiting.remove(&flow(record));
            match fate {
                Ok(Adopted::Taken) => self.tally.taken += 1,
                Ok(_) => {}
                Err(reason) => self.tally.leave(reason),
            }
        }
        Ok(())
    }

    /// Asks for all, and again later if nobody answers.
    fn ask(&mut self) {
        let Some(asking) = &mut self.asking else { return };
        let now = Instant::now();
        if now < asking.again {
            return;
        }
        asking.again = now + asking.pause;
        asking.pause = (asking.pause * 2).min(ASKS_AGAIN[1]);
        asking.heard.clear();
        // Who is not reached now is reached next time.
        let _ = self.own.send_to(&Note::Ask.message(self.daemon.sync_id as u8), self.group);
    }

    /// Counts what comes in answer, and asks no more once a master has said that it was all and nothing of it was lost.
    fn count_answers(&mut self, messages: &[(Vec<u8>, SocketAddr)]) {
        let Some(asking) = &mut self.asking else { return };
        for (bytes, from) in messages {
            let Ok(message) = Message::read(bytes) else { continue };
            let heard = asking.heard.entry(*from).or_default();
            match message.note() {
                Some(Note::All(records)) if *heard >= records => {
                    self.asking = None;
                    return;
                }
                Some(_) => asking.heard.clear(),
                None => *heard += message.records().count() as u32,
            }
            // Not while the answer is still coming.
            asking.again = asking.again.max(Instant::now() + ASKS_AGAIN[0]);
        }
    }
}

fn flow(record: &Record<'_>) -> Flow {
    let Record { protocol, flags, client, client_port, virtual_address, virtual_port, engine_data, .. } =
        *record;
    (
        protocol,
        flags & TEMPLATE != 0,
        client,
        client_port,
        virtual_address,
        virtual_port,
        engine_data.map(Into::into),
    )
}

/// What has come to a socket, with whom it is from; at most so much at a time.
fn received(socket: &UdpSocket, max_length: u16) -> Vec<(Vec<u8>, SocketAddr)> {
    // One more, so that what is too long does not look whole.
    let mut room = vec![0; usize::from(max_length) + 1];
    let next = || socket.recv_from(&mut room).ok().map(|(length, from)| (room[..length].to_vec(), from));
    std::iter::from_fn(next).take(AT_ONCE).collect()
}
