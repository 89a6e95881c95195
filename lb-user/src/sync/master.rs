//! The master: looks at the connection table, an eighth of it at a time, and sends what is due.
//!
//! The packet program knows nothing of it and pays nothing for it. What was told of which entry is remembered by its place in
//! the table. To a backup that asks for it, everything is sent in one go by a thread of its own. IPVS counterpart:
//! `ip_vs_sync_conn`, `sync_thread_master`.

use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lb_common::connection::{CLIENT_SIDE, Entry, TEMPLATE, WAYS, is_past};
use lb_common::settings::Settings;
use lb_common::sync::master::{self, Rules, Told};
use lb_common::sync::{Message, Note, Record};
use lb_common::sysctl::Sysctl;
use lb_common::tuple::Tuple;

use super::descriptors;
use super::socket::{self, Interface, Line, Sent, refused};
use crate::director::Result;
use crate::director::xdp::Xdp;
use crate::director::xdp::daemon::Tally;
use crate::director::xdp::maps::{Connections, Maps, TableEntry};
use crate::director::xdp::sync::{self, record};
use crate::table::SyncDaemon;

/// Parts that the table is looked at in; each takes its turn once a second.
const PARTS: u32 = 8;
/// Sets whose connections are sent at once to a backup that has asked for all.
const AT_ONCE: u32 = 1024;

/// A master.
#[derive(Debug)]
pub struct Master {
    daemon: SyncDaemon,
    group: SocketAddr,
    socket: UdpSocket,
    /// Where backups that have just started ask; without it they are told as time goes by.
    asked: Option<UdpSocket>,
    directory: PathBuf,
    memory: Memory,
    next: Instant,
    part: u32,
    tally: Tally,
    /// Who is being told all.
    served: Arc<Mutex<HashSet<SocketAddr>>>,
}

/// What is remembered of an entry.
#[derive(Debug, Clone, Copy)]
struct Memo {
    /// Whose memory it is.
    flow: Tuple,
    destination: u32,
    port: u16,
    /// The deadline at the last look.
    deadline: Option<u32>,
    told: Option<Told>,
}

impl Memo {
    fn of(entry: &Entry) -> Self {
        let Entry { destination, port, .. } = *entry;
        Self { flow: entry.tuple(), destination, port, deadline: None, told: None }
    }

    fn is_of(&self, entry: &Entry) -> bool {
        (self.flow, self.destination, self.port) == (entry.tuple(), entry.destination, entry.port)
    }
}

/// What is remembered of a set's entries.
type SetMemory = Option<Box<[Option<Memo>; WAYS]>>;

/// What is remembered of the table, by set.
#[derive(Debug, Default)]
struct Memory {
    sets: Vec<SetMemory>,
}

impl Memory {
    /// The memory of an entry at a place, which begins anew if another was there.
    fn at(&mut self, set: u32, slot: usize, entry: &Entry) -> &mut Memo {
        let set = set as usize;
        if self.sets.len() <= set {
            self.sets.resize(set + 1, None);
        }
        let place = &mut self.sets[set].get_or_insert_default()[slot];
        *place = place.filter(|memo| memo.is_of(entry));
        place.get_or_insert_with(|| Memo::of(entry))
    }

    /// Forgets what has gone from a set.
    fn forget(&mut self, set: u32, is_there: impl Fn(usize) -> bool) {
        let Some(place) = self.sets.get_mut(set as usize) else { return };
        let Some(memos) = place else { return };
        for (slot, memo) in memos.iter_mut().enumerate() {
            if !is_there(slot) {
                *memo = None;
            }
        }
        if memos.iter().all(Option::is_none) {
            *place = None;
        }
    }
}

/// An entry that has to be told, with its place.
#[derive(Debug, Clone, Copy)]
struct Due {
    set: u32,
    slot: usize,
    found: TableEntry,
}

impl Master {
    /// A master on its interface.
    pub fn new(daemon: &SyncDaemon, interface: &Interface, directory: &Path) -> Result<Self> {
        let group = socket::group(daemon, interface);
        let socket = socket::sender(&group, &interface.name, daemon.ttl, false);
        let socket = socket.map_err(|error| refused(&error))?;
        // Says now what sending would say later: that the interface is down.
        socket.connect(group).map_err(|error| refused(&error))?;
        Ok(Self {
            daemon: daemon.clone(),
            group,
            socket,
            // Somebody else may have the port for himself.
            asked: socket::receiver(&group, interface).ok(),
            directory: directory.into(),
            memory: Memory::default(),
            next: Instant::now(),
            part: 0,
            tally: Tally::default(),
            served: Arc::default(),
        })
    }

    /// What wakes it.
    pub fn readable(&self) -> Vec<BorrowedFd<'_>> {
        descriptors(&self.asked)
    }

    /// How long there is nothing to do.
    pub fn rest(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// What it has done.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Answers whoever asks, and looks at the next part of the table if it is time to.
    pub fn work(&mut self, xdp: &Xdp) -> Result<()> {
        self.answer();
        let now = Instant::now();
        if now < self.next {
            return Ok(());
        }
        // After a pause of the machine, or a long look, it goes on from now.
        self.next = (self.next + Duration::from_secs(1) / PARTS).max(now);
        self.look(xdp.maps())
    }

    fn line(&self) -> Line<'_> {
        Line {
            socket: &self.socket,
            to: self.group,
            sync_id: self.daemon.sync_id as u8,
            max_length: self.daemon.max_length.into(),
        }
    }

    /// Looks at a part of the table and tells what is due.
    fn look(&mut self, maps: &Maps) -> Result<()> {
        let settings = maps.settings();
        let rules = rules(&settings);
        let now = settings.swept_at;
        let mut connections = maps.connections()?;
        let sets = connections.sets();
        let share = sets.div_ceil(PARTS);
        let first = share * self.part;
        self.part = (self.part + 1) % PARTS;

        let (mut due, mut templates) = (Vec::new(), Vec::new());
        let memory = &mut self.memory;
        connections.visit(first..(first + share).min(sets), |set, entries| {
            memory.forget(set, |slot| entries[slot].is_some());
            for (slot, found) in entries.iter().enumerate() {
                let Some(found) = found.filter(|found| !is_past(found.deadline, now)) else { continue };
                let entry = &found.entry;
                let is_told = master::is_told(entry);
                if !master::is_own(entry, now) || !is_told && entry.template == 0 {
                    continue;
                }
                let memo = memory.at(set, slot, entry);
                // A packet has come.
                if memo.deadline.replace(found.deadline) != Some(found.deadline) && entry.template != 0 {
                    templates.push(entry.template);
                }
                if is_told && master::is_due(entry, found.deadline, now, memo.told.as_ref(), &rules) {
                    due.push(Due { set, slot, found });
                }
            }
        })?;
        templates.sort_unstable();
        templates.dedup();
        let mut all = self.due_templates(&connections, &templates, now, &rules)?;
        // Behind the templates, so that who takes them can tell what these control.
        all.append(&mut due);
        self.tell(maps, &settings, &all, now);
        Ok(())
    }

    /// Which of the templates at these places are due.
    fn due_templates(
        &mut self,
        connections: &Connections<'_>,
        places: &[u32],
        now: u32,
        rules: &Rules,
    ) -> Result<Vec<Due>> {
        let mut due = Vec::new();
        for place in places {
            let Some(found) = connections.at(*place)?.filter(|found| found.entry.role == TEMPLATE) else {
                continue;
            };
            let (set, slot) = (place >> 3, (place & 7) as usize - 1);
            let told = self.memory.at(set, slot, &found.entry).told;
            if master::is_due(&found.entry, found.deadline, now, told.as_ref(), rules) {
                due.push(Due { set, slot, found });
            }
        }
        Ok(due)
    }

    /// Sends what is due, and remembers what was sent.
    fn tell(&mut self, maps: &Maps, settings: &Settings, due: &[Due], now: u32) {
        let records = due.iter().filter_map(|due| Some((due, record(maps, settings, &due.found, now)?)));
        let (told, records): (Vec<&Due>, Vec<_>) = records.unzip();
        let records: Vec<Record<'_>> = records.iter().map(sync::Told::record).collect();
        let mut sent = Sent::default();
        let result = self.line().send(&records, &mut sent);
        self.tally.messages += sent.messages;
        self.tally.records += sent.records;
        let done = (sent.records + sent.too_long) as usize;
        for Due { set, slot, found } in told.into_iter().take(done) {
            let memo = self.memory.at(*set, *slot, &found.entry);
            memo.told = Some(Told::of(&found.entry, found.deadline, now, memo.told.as_ref()));
        }
        if sent.too_long > 0 {
            *self.tally.left.entry("longer than a message may be".into()).or_default() += sent.too_long;
        }
        // What was not sent is still due at the next look.
        if let Err(error) = result {
            self.tally.leave(&format!("messages not sent: {error}"));
        }
    }

    /// Has everybody told all who asks for it.
    fn answer(&mut self) {
        let Some(asked) = &self.asked else { return };
        let mut room = [0; 2048];
        while let Ok((length, from)) = asked.recv_from(&mut room) {
            let Ok(message) = Message::read(&room[..length]) else { continue };
            let own = self.daemon.sync_id as u8;
            let is_ours = message.sync_id == 0 || message.sync_id == own;
            if !is_ours || message.note() != Some(Note::Ask) {
                continue;
            }
            if !self.served.lock().unwrap_or_else(PoisonError::into_inner).insert(from) {
                continue;
            }
            let (daemon, directory, served) =
                (self.daemon.clone(), self.directory.clone(), Arc::clone(&self.served));
            thread::spawn(move || {
                // One that hears nothing of the end asks again.
                let _ = tell_all(&directory, &daemon, from);
                served.lock().unwrap_or_else(PoisonError::into_inner).remove(&from);
            });
        }
    }
}

fn rules(settings: &Settings) -> Rules {
    let sysctl = |sysctl: Sysctl| settings.sysctls[sysctl as usize];
    Rules {
        refresh_period: sysctl(Sysctl::SyncRefreshPeriod).saturating_mul(settings.ticks_per_second),
        retries: sysctl(Sysctl::SyncRetries),
        templates_alone: sysctl(Sysctl::SyncPersistMode) != 0,
        ticks_per_second: settings.ticks_per_second,
    }
}

/// Tells one backup all that there is, templates first, and then that it was all.
fn tell_all(directory: &Path, daemon: &SyncDaemon, to: SocketAddr) -> Result<()> {
    let maps = Maps::open(directory)?;
    let socket =
        socket::sender(&to, &daemon.interface, daemon.ttl, false).map_err(|error| refused(&error))?;
    let sync_id = daemon.sync_id as u8;
    let line = Line { socket: &socket, to, sync_id, max_length: daemon.max_length.into() };
    let mut connections = maps.connections()?;
    let sets = connections.sets();
    let mut sent = Sent::default();
    for role in [TEMPLATE, CLIENT_SIDE] {
        for first in (0..sets).step_by(AT_ONCE as usize) {
            let settings = maps.settings();
            let now = settings.swept_at;
            let mut records = Vec::new();
            connections.visit(first..(first + AT_ONCE).min(sets), |_, entries| {
                let told = entries.iter().flatten().filter(|found| {
                    found.entry.role == role && !is_past(found.deadline, now) && master::is_told(&found.entry)
                });
                records.extend(told.filter_map(|found| record(&maps, &settings, found, now)));
            })?;
            let records: Vec<Record<'_>> = records.iter().map(sync::Told::record).collect();
            line.send(&records, &mut sent).map_err(|error| refused(&error))?;
        }
    }
    let note = Note::All(sent.records as u32).message(sync_id);
    socket.send_to(&note, to).map(drop).map_err(|error| refused(&error))
}
