//! The table as command lines that restore it (`-S`).
//!
//! Thresholds, timeouts, daemons and counters are not among them, as with ipvsadm.

use std::fmt::Write as _;

use lb_common::protocol::Protocol;

use super::address;
use super::list::port_protocol;
use super::names::Names;
use super::values::write_scheduler_flags;
use crate::rule;
use crate::table::{Destination, Family, Netmask, Service, ServiceKey, service_flags};

/// Appends the line that adds a service.
///
/// Timeouts of its own stand there only with `with_added`, as ipvsadm has no words for them.
pub fn write_service(out: &mut String, service: &Service, names: Option<&dyn Names>, with_added: bool) {
    out.push_str("-A ");
    write_key(out, &service.key, names);
    out.push_str(" -s ");
    out.push_str(&service.scheduler);
    let flags = service.flags;
    // Writing to a String cannot fail.
    if flags & service_flags::PERSISTENT != 0 {
        let _ = write!(out, " -p {}", service.timeout);
        if service.netmask != Netmask::full(service.key.family()) {
            let _ = write!(out, " -M {}", service.netmask);
        }
    }
    if let Some(engine) = &service.engine {
        out.push_str(" --pe ");
        out.push_str(engine);
    }
    if flags & service_flags::ONE_PACKET != 0 {
        out.push_str(" -o");
    }
    write_scheduler_flags(out, flags, &service.scheduler, " -b ", "");
    if with_added {
        let _ = rule::write_own_timeouts(out, service, false);
    }
    out.push('\n');
}

/// Appends the line that adds a destination.
pub fn write_destination(
    out: &mut String,
    service: &ServiceKey,
    destination: &Destination,
    names: Option<&dyn Names>,
) {
    out.push_str("-a ");
    write_key(out, service, names);
    out.push_str(" -r ");
    address::write(out, destination.key.address, destination.key.port, port_protocol(service), names);
    // Writing to a String cannot fail.
    let _ = write!(out, " {} -w {}", rule::method_option(destination.method), destination.weight);
    let _ = rule::write_tunnel(out, destination);
    out.push('\n');
}

fn write_key(out: &mut String, key: &ServiceKey, names: Option<&dyn Names>) {
    match *key {
        ServiceKey::Address { protocol, address, port } => {
            out.push_str(match protocol {
                Protocol::Tcp => "-t ",
                Protocol::Udp => "-u ",
                Protocol::Sctp => "--sctp-service ",
            });
            address::write(out, address, port, Some(protocol), names);
        }
        ServiceKey::Mark { mark, family } => {
            let _ = write!(out, "-f {mark}");
            if family == Family::V6 {
                out.push_str(" -6");
            }
        }
    }
}
