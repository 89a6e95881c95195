//! Carries a command out on a director and prints what it has to say.

use std::cmp::Ordering;
use std::io::{self, BufWriter, Write};

use super::command::{Command, Listing, Subject};
use super::json::{self, Document};
use super::list::{self, Table, port_protocol};
use super::message::{Complaint, refusal};
use super::names::Names;
use super::options::CommandKind;
use super::{connections, save, sort};
use crate::director::{Director, Error};
use crate::mark;
use crate::rehearsal::Rehearsal;
use crate::table::{ConnectionReport, DestinationReport, Info, ServiceReport};

/// Why a command did not come to its end.
#[derive(Debug)]
pub enum Failure {
    /// It was refused.
    Complaint(Complaint),
    /// Its output could not be written.
    Output(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Lines are collected up to about this many bytes before they are written.
const BUFFER: usize = 64 * 1024;

/// Carries out a change.
pub fn change(command: &Command, director: &mut dyn Director) -> Result<(), Complaint> {
    use CommandKind as C;
    let (kind, done) = match command {
        Command::AddService(service) => (C::AddService, director.add_service(service)),
        Command::EditService(service) => (C::EditService, director.edit_service(service)),
        Command::DeleteService(key) => (C::DeleteService, director.delete_service(key)),
        Command::Clear => (C::Clear, director.flush()),
        Command::AddDestination(service, destination) => {
            (C::AddDestination, director.add_destination(service, destination))
        }
        Command::EditDestination(service, destination) => {
            (C::EditDestination, director.edit_destination(service, destination))
        }
        Command::DeleteDestination(service, destination) => {
            (C::DeleteDestination, director.delete_destination(service, destination))
        }
        Command::SetTimeouts(timeouts) => (C::Set, director.set_timeouts(timeouts)),
        Command::StartDaemon(daemon) => (C::StartDaemon, director.start_daemon(daemon)),
        Command::StopDaemon(role) => (C::StopDaemon, director.stop_daemon(*role)),
        Command::AddMarkRule(rule) => {
            (C::Restore, director.change_mark_rules(&mut |rules| mark::add(rules, *rule)))
        }
        Command::DeleteMarkRules(number) => {
            (C::Restore, director.change_mark_rules(&mut |rules| mark::delete(rules, *number)))
        }
        Command::Zero(service) => (C::Zero, director.zero(service.as_ref())),
        // These change nothing.
        Command::List(_)
        | Command::Save { .. }
        | Command::Restore
        | Command::Rehearse(_)
        | Command::Help
        | Command::Version => return Ok(()),
    };
    done.map_err(|error| refusal(kind, &error))
}

/// Shows what a change would do; the director stays as it is.
pub fn rehearse(command: &Command, director: &mut dyn Director, to: &mut dyn Write) -> Result<(), Failure> {
    let mut rehearsal = Rehearsal::of(director).map_err(unlisted)?;
    change(command, rehearsal.stage()).map_err(Failure::Complaint)?;
    describe(&mut rehearsal, to)
}

/// Prints what was rehearsed.
pub fn describe(rehearsal: &mut Rehearsal, to: &mut dyn Write) -> Result<(), Failure> {
    let mut to = BufWriter::with_capacity(BUFFER, to);
    rehearsal.describe(&mut to).map_err(unlisted)??;
    Ok(to.flush()?)
}

/// Carries out `-L`; with what ipvsadm has no words for, if so wanted.
pub fn list(
    listing: &Listing,
    with_added: bool,
    director: &mut dyn Director,
    names: &dyn Names,
    to: &mut dyn Write,
) -> Result<(), Failure> {
    let names = (!listing.numeric).then_some(names);
    let mut to = BufWriter::with_capacity(BUFFER, to);
    match listing.subject {
        Subject::Timeouts => {
            let timeouts = director.timeouts().map_err(unlisted)?;
            if listing.json {
                Document::timeouts(&timeouts).write(&mut to)?;
            } else {
                list::write_timeouts(&mut to, &timeouts)?;
            }
        }
        Subject::Daemons => {
            let daemons = director.daemons().map_err(unlisted)?;
            if listing.json {
                Document::daemons(&daemons).write(&mut to)?;
            } else {
                daemons.iter().try_for_each(|daemon| list::write_daemon(&mut to, daemon))?;
            }
        }
        Subject::Connections { engine_data } => {
            let connections = director.connections().map_err(unlisted)?;
            if listing.json {
                Document::connections(&connections).write(&mut to)?;
            } else {
                list_connections(&connections, engine_data, names, &mut to)?;
            }
        }
        Subject::Services { only, format, sorted, exact } => {
            let info = director.info().map_err(unlisted)?;
            let services = match only {
                Some(key) => vec![director.service(&key).map_err(unlisted)?],
                None => director.services().map_err(unlisted)?,
            };
            let services = in_order(&services, |report| report.service.key, sorted, &sort::services);
            if listing.json {
                list_as_json(&info, &services, sorted, director, &mut to)?;
            } else {
                if only.is_none() {
                    list::write_head(&mut to, &info)?;
                }
                list_services(
                    &Table { format, exact, names, with_added },
                    &services,
                    sorted,
                    director,
                    &mut to,
                )?;
            }
        }
    }
    Ok(to.flush()?)
}

fn list_connections(
    connections: &[ConnectionReport],
    engine_data: bool,
    names: Option<&dyn Names>,
    to: &mut dyn Write,
) -> io::Result<()> {
    connections::titles(to, engine_data)?;
    connections.iter().try_for_each(|connection| connections::write(to, connection, engine_data, names))
}

fn list_as_json(
    info: &Info,
    services: &[&ServiceReport],
    sorted: bool,
    director: &mut dyn Director,
    to: &mut dyn Write,
) -> Result<(), Failure> {
    let mut described = Vec::with_capacity(services.len());
    for service in services {
        let destinations = director.destinations(&service.service.key).map_err(unlisted)?;
        described.push(json::Service::of(service, &destinations_in_order(&destinations, sorted)));
    }
    Ok(Document::table(info, described).write(to)?)
}

fn list_services(
    table: &Table<'_>,
    services: &[&ServiceReport],
    sorted: bool,
    director: &mut dyn Director,
    to: &mut dyn Write,
) -> Result<(), Failure> {
    table.titles(to)?;
    let mut lines = String::new();
    for service in services {
        let key = service.service.key;
        lines.clear();
        table.service(&mut lines, service);
        let destinations = director.destinations(&key).map_err(unlisted)?;
        for destination in destinations_in_order(&destinations, sorted) {
            table.destination(&mut lines, destination, port_protocol(&key));
        }
        to.write_all(lines.as_bytes())?;
    }
    Ok(())
}

/// Carries out `-S`; with what ipvsadm has no words for, such as the rules that mark packets, if so wanted.
pub fn save(
    numeric: bool,
    with_added: bool,
    director: &mut dyn Director,
    names: &dyn Names,
    to: &mut dyn Write,
) -> Result<(), Failure> {
    let names = (!numeric).then_some(names);
    let mut to = BufWriter::with_capacity(BUFFER, to);
    let services = director.services().map_err(unlisted)?;
    let mut lines = String::new();
    for report in in_order(&services, |report| report.service.key, true, &sort::services) {
        let service = &report.service;
        lines.clear();
        save::write_service(&mut lines, service, names, with_added);
        let destinations = director.destinations(&service.key).map_err(unlisted)?;
        for report in destinations_in_order(&destinations, true) {
            save::write_destination(&mut lines, &service.key, &report.destination, names);
        }
        to.write_all(lines.as_bytes())?;
    }
    if with_added {
        for rule in director.mark_rules().map_err(unlisted)?.iter().flatten() {
            writeln!(to, "mark add {}", mark::Words(rule))?;
        }
    }
    Ok(to.flush()?)
}

fn destinations_in_order(reports: &[DestinationReport], sorted: bool) -> Vec<&DestinationReport> {
    in_order(reports, |report| report.destination.key, sorted, &sort::destinations)
}

/// The reports, sorted by their keys if so wanted.
fn in_order<'a, T, K: Copy>(
    reports: &'a [T],
    key: impl Fn(&T) -> K,
    sorted: bool,
    order: &impl Fn(&K, &K) -> Ordering,
) -> Vec<&'a T> {
    let mut keyed: Vec<(K, &'a T)> = reports.iter().map(|report| (key(report), report)).collect();
    if sorted {
        sort::merge_sort(&mut keyed, &|a, b| order(&a.0, &b.0));
    }
    keyed.into_iter().map(|(_, report)| report).collect()
}

fn unlisted(error: Error) -> Failure {
    Failure::Complaint(refusal(CommandKind::List, &error))
}
