//! Keeping one director's table equal to another's: once, or continuously by following.
//!
//! Services, destinations and timeouts are mirrored; sync daemons and connections stay where they are, and so do timeouts of a
//! service's own where the target cannot have them. IPVS sends no notifications, so a follower asks again and again. What the target refuses is named and tried again.
//! IPVS has no counterpart.

use std::collections::HashSet;

use crate::director::{Director, Error, Result};
use crate::plan::{Applied, Change, plan, reach};
use crate::table::{ServiceKey, Table};

/// The changes that would make the target equal to the source; none when there is no drift.
pub fn diff(source: &mut dyn Director, target: &mut dyn Director) -> Result<Vec<Change>> {
    let wanted = whole(source, target, read)?;
    Ok(plan(&target.table()?.configured(), &wanted))
}

/// Makes the target equal to the source, as far as the target can express it.
pub fn mirror(source: &mut dyn Director, target: &mut dyn Director) -> Result<Applied> {
    reach(whole(source, target, read)?, target)
}

/// How often a table is read until it is whole.
const READS: usize = 10;

fn read(source: &mut dyn Director) -> Result<Table> {
    Ok(source.table()?.configured())
}

/// The source's table, with every service of the target's that the source still has.
///
/// Kernel IPVS keeps the services of all network namespaces in one list and tells it in pieces, each from the place in the
/// list where the last one ended. Whoever changes another namespace's table in between shifts that place, and services
/// are left out. So those that seem to be gone are asked for by name before anything is deleted.
fn whole(
    source: &mut dyn Director,
    target: &mut dyn Director,
    mut read: impl FnMut(&mut dyn Director) -> Result<Table>,
) -> Result<Table> {
    let known: Vec<ServiceKey> = target.services()?.iter().map(|report| report.service.key).collect();
    for _ in 0..READS {
        let mut table = read(source)?;
        if !target.has_own_timeouts() {
            table.entries.iter_mut().for_each(|entry| entry.service.own_timeouts = None);
        }
        let there: HashSet<ServiceKey> = table.entries.iter().map(|entry| entry.service.key).collect();
        let mut gone = known.iter().filter(|key| !there.contains(key));
        if gone.all(|key| matches!(source.service(key), Err(Error::NoSuchService))) {
            return Ok(table);
        }
    }
    Err(Error::Unavailable("the table changes faster than it can be read".into()))
}

/// How often a follower reads everything: once in so many polls.
const VERIFY: u32 = 60;

/// The source and the target of a follower.
pub type Pair = (Box<dyn Director>, Box<dyn Director>);

/// Follows a source: each poll brings the target up to date.
///
/// As long as the source's fingerprint stays the same a poll costs no more than that; now and then it reads and
/// compares both tables, which finds what the fingerprint does not tell and undoes what others did to the target.
#[derive(Debug, Default)]
pub struct Follower {
    /// The source's fingerprint at the last poll that reached the target.
    seen: Option<u64>,
    /// Polls since both tables were compared.
    unverified: u32,
    /// What the target refused then, as printed.
    refused: Vec<String>,
    /// What the last poll failed with, as printed.
    failed: Option<String>,
}

impl Follower {
    /// Looks at the source and brings the target up to date; `None` when there is nothing new to tell.
    ///
    /// A refusal is told when it is new, not at every poll. After an error the next poll begins afresh.
    pub fn poll(&mut self, source: &mut dyn Director, target: &mut dyn Director) -> Result<Option<Applied>> {
        let seen = self.seen.take();
        // Before the table: what changes in between is seen at the next poll.
        let fingerprint = source.fingerprint()?;
        self.unverified += 1;
        if seen == Some(fingerprint) && self.unverified < VERIFY {
            self.seen = seen;
            return Ok(None);
        }
        let applied = mirror(source, target)?;
        self.seen = Some(fingerprint);
        self.unverified = 0;

        let refused: Vec<String> = applied.refused.iter().map(ToString::to_string).collect();
        let news = !applied.made.is_empty() || refused != self.refused || self.failed.is_some();
        self.refused = refused;
        self.failed = None;
        Ok(news.then_some(applied))
    }

    /// Polls until `wait`, called between polls, says that it is enough. What there is to tell goes to `tell`.
    ///
    /// An error does not end the loop, because what went away (a module was unloaded, a table removed) may come
    /// back; it is told once. After an error or a refusal the directors are opened anew, since what they
    /// found out about the host may be true no more.
    pub fn follow(
        &mut self,
        open: &mut dyn FnMut() -> Result<Pair>,
        tell: &mut dyn FnMut(Result<Applied>),
        wait: &mut dyn FnMut() -> bool,
    ) {
        let mut opened: Option<Pair> = None;
        loop {
            let polled = opened.take().map_or_else(&mut *open, Ok).and_then(|mut pair| {
                let news = self.poll(pair.0.as_mut(), pair.1.as_mut())?;
                opened = self.refused.is_empty().then_some(pair);
                Ok(news)
            });
            match polled {
                Ok(None) => {}
                Ok(Some(applied)) => tell(Ok(applied)),
                Err(error) => {
                    let text = Some(error.to_string());
                    if self.failed != text {
                        self.failed = text;
                        tell(Err(error));
                    }
                }
            }
            if !wait() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use lb_common::protocol::Protocol;

    use super::*;
    use crate::director::memory::Memory;
    use crate::table::{Destination, DestinationKey, Service, Timeouts};

    fn web() -> ServiceKey {
        ServiceKey::Address { protocol: Protocol::Tcp, address: IpAddr::from([192, 0, 2, 1]), port: 80 }
    }

    fn server(last: u8) -> Destination {
        Destination::new(DestinationKey { address: IpAddr::from([198, 51, 100, last]), port: 80 })
    }

    fn source() -> Memory {
        let mut source = Memory::default();
        source.add_service(&Service::new(web())).unwrap();
        source.add_destination(&web(), &server(1)).unwrap();
        source.add_destination(&web(), &server(2)).unwrap();
        source.set_timeouts(&Timeouts { tcp: 60, tcp_fin: 5, udp: 5 }).unwrap();
        source
    }

    fn rules(changes: &[Change]) -> Vec<String> {
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_mirrored_table_has_no_drift() {
        let (mut source, mut target) = (source(), Memory::default());
        target
            .add_service(&Service::new(ServiceKey::Mark { mark: 1, family: crate::table::Family::V4 }))
            .unwrap();
        let drift = diff(&mut source, &mut target).unwrap();
        let applied = mirror(&mut source, &mut target).unwrap();
        assert_eq!(applied.made, drift);
        assert_eq!(
            rules(&applied.made),
            [
                "--set 60 5 5",
                "-A -t 192.0.2.1:80 -s wlc",
                "-a -t 192.0.2.1:80 -r 198.51.100.1:80 -g -w 1",
                "-a -t 192.0.2.1:80 -r 198.51.100.2:80 -g -w 1",
                "-D -f 1",
            ]
        );
        assert!(applied.refused.is_empty());
        assert_eq!(diff(&mut source, &mut target).unwrap(), vec![]);
        assert_eq!(target.table().unwrap().entries, source.table().unwrap().entries);
    }

    #[test]
    fn what_the_target_cannot_express_is_named_and_the_rest_is_mirrored() {
        let (mut source, mut target) = (source(), Memory::default());
        target.host.broadcast.insert(Ipv4Addr::new(198, 51, 100, 1));
        let applied = mirror(&mut source, &mut target).unwrap();
        let [refused] = &applied.refused[..] else { panic!("{applied:?}") };
        assert_eq!(
            refused.to_string(),
            format!("-a -t 192.0.2.1:80 -r 198.51.100.1:80 -g -w 1: {}", Error::Invalid)
        );
        assert_eq!(target.destinations(&web()).unwrap().len(), 1);
    }

    #[test]
    fn a_refused_service_is_named_once_and_its_destinations_are_not_tried() {
        let (mut source, mut target) = (source(), Memory::default());
        let mut wanted = source.table().unwrap().configured();
        wanted.entries[0].service.scheduler = "nonesuch".into();
        let applied = reach(wanted, &mut target).unwrap();
        let [refused] = &applied.refused[..] else { panic!("{applied:?}") };
        assert!(matches!(refused.error, Error::UnknownScheduler));
        assert_eq!(rules(&applied.made), ["--set 60 5 5"]);
    }

    #[test]
    fn a_refused_edit_leaves_what_is_and_does_the_rest() {
        let (mut source, mut target) = (source(), source());
        source.add_destination(&web(), &server(3)).unwrap();
        let mut wanted = source.table().unwrap().configured();
        wanted.entries[0].service.scheduler = "nonesuch".into();
        wanted.entries[0].destinations[1].lower_threshold = 1;
        wanted.entries[0].destinations[2].weight = 7;
        let applied = reach(wanted, &mut target).unwrap();
        assert_eq!(applied.refused.len(), 2);
        let entry = target.table().unwrap().configured().entries.remove(0);
        assert_eq!(entry.service.scheduler, "wlc");
        assert_eq!(entry.destinations, [server(3), server(2), Destination { weight: 7, ..server(1) }]);
    }

    #[test]
    fn a_follower_tells_each_change_once() {
        let (mut source, mut target) = (source(), Memory::default());
        let mut follower = Follower::default();
        assert!(follower.poll(&mut source, &mut target).unwrap().is_some());
        assert!(follower.poll(&mut source, &mut target).unwrap().is_none());

        source.delete_destination(&web(), &server(1).key).unwrap();
        let applied = follower.poll(&mut source, &mut target).unwrap().unwrap();
        assert_eq!(rules(&applied.made), ["-d -t 192.0.2.1:80 -r 198.51.100.1:80"]);
        assert!(follower.poll(&mut source, &mut target).unwrap().is_none());

        // Back at the head of the list, as in the source.
        source.add_destination(&web(), &server(1)).unwrap();
        assert!(follower.poll(&mut source, &mut target).unwrap().is_some());
        assert_eq!(target.table().unwrap().entries, source.table().unwrap().entries);
    }

    #[test]
    fn a_follower_undoes_what_others_did_to_the_target_and_tells_a_refusal_once() {
        let (mut source, mut target) = (source(), Memory::default());
        target.host.broadcast.insert(Ipv4Addr::new(198, 51, 100, 1));
        let mut follower = Follower::default();
        assert_eq!(follower.poll(&mut source, &mut target).unwrap().unwrap().refused.len(), 1);
        target.flush().unwrap();
        let told: Vec<Applied> =
            (0..3 * VERIFY).filter_map(|_| follower.poll(&mut source, &mut target).unwrap()).collect();
        let [repair] = &told[..] else { panic!("{told:?}") };
        assert_eq!(repair.made.len(), 2);

        assert_eq!(target.destinations(&web()).unwrap().len(), 1);

        // Once it can be done it is done, and told, without a change in the source.
        target.host.broadcast.clear();
        let repaired = (0..VERIFY).find_map(|_| follower.poll(&mut source, &mut target).unwrap()).unwrap();
        assert!(repaired.refused.is_empty());
        assert_eq!(target.table().unwrap().entries, source.table().unwrap().entries);
    }

    #[test]
    fn what_went_away_is_told_once_and_followed_again_when_it_is_back() {
        let mut turns = 0;
        let mut open = || {
            turns += 1;
            if turns < 4 {
                return Err(Error::Unavailable("not there".into()));
            }
            Ok((Box::new(source()) as _, Box::new(Memory::default()) as _))
        };
        let mut told = Vec::new();
        let mut left = 20;
        let mut wait = || {
            left -= 1;
            left > 0
        };
        let mut tell = |news: Result<Applied>| {
            told.push(news.map(|applied| applied.made.len()).map_err(|error| error.to_string()));
        };
        Follower::default().follow(&mut open, &mut tell, &mut wait);
        assert_eq!(told, [Err("not there".to_owned()), Ok(4)]);
        assert_eq!(turns, 4);
    }

    #[test]
    fn a_service_that_was_left_out_of_a_listing_is_not_gone() {
        let (mut source, mut target) = (source(), source());
        let mut reads = 0;
        let mut partial = |source: &mut dyn Director| {
            reads += 1;
            let table = read(source)?;
            Ok(if reads < 3 { Table { entries: Vec::new(), ..table } } else { table })
        };
        let table = whole(&mut source, &mut target, &mut partial).unwrap();
        assert_eq!((table.entries.len(), reads), (1, 3));
        let never = |source: &mut dyn Director| Ok(Table { entries: Vec::new(), ..read(source)? });
        assert!(matches!(whole(&mut source, &mut target, never), Err(Error::Unavailable(_))));
        // One that is gone is.
        source.delete_service(&web()).unwrap();
        assert_eq!(whole(&mut source, &mut target, read).unwrap().entries, vec![]);
    }

    #[test]
    fn the_end_of_an_error_is_told() {
        let (mut source, mut target) = (source(), source());
        let mut follower = Follower { failed: Some("not there".into()), ..Follower::default() };
        let applied = follower.poll(&mut source, &mut target).unwrap().unwrap();
        assert!(applied.made.is_empty() && applied.refused.is_empty());
        assert!(follower.poll(&mut source, &mut target).unwrap().is_none());
    }
}
