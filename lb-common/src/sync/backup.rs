//! What a backup makes of a record: whether it takes it, and the state and time that it gives.
//!
//! Where the connection leads is the backup's own table's to say, not the record's. IPVS counterpart:
//! `ip_vs_proc_sync_conn`.

use core::net::IpAddr;

use super::{IN_SEQUENCE, INACTIVE, NO_CLIENT_PORT, NO_OUTPUT, ONE_PACKET, OUT_SEQUENCE, Record, TEMPLATE};
use crate::protocol::{Protocol, sctp, state, tcp, udp};
use crate::sip;

/// Seconds that a template lives of which the record does not say it (version 0).
const TEMPLATE_TIMEOUT: u32 = 180;

/// Why a record is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// Flags that do not go together, or say that it is of one packet.
    Flags,
    /// The state is none of the protocol's.
    State,
    /// The protocol is none that is balanced.
    Protocol,
    /// An address of another family than the others', or one that cannot be a client's.
    Addresses,
    /// Sequence numbers are shifted, as where FTP's addresses are rewritten, which is not done here.
    Sequences,
    /// It belongs to a persistence engine that is not known, or is no template.
    Engine,
}

impl Unfit {
    /// A few words for whoever counts them.
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::Flags => "with flags that are not known",
            Self::State => "in a state that is not known",
            Self::Protocol => "of a protocol that is not known",
            Self::Addresses => "with addresses that do not fit",
            Self::Sequences => "with shifted sequence numbers (FTP)",
            Self::Engine => "of a persistence engine that is not known",
        }
    }
}

/// What a backup takes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// None for a template of a firewall mark, which serves all protocols.
    pub protocol: Option<Protocol>,
    /// Whether it is a persistence template.
    pub is_template: bool,
    /// Connection state, numbered as in [`crate::protocol::state`].
    pub state: u8,
    /// Whether it counts as inactive.
    pub inactive: bool,
    /// Whether no answer was seen.
    pub no_output: bool,
    /// Seconds that it lives; none to take those of its state.
    pub seconds: Option<u32>,
}

/// Checks a record.
///
/// # Errors
///
/// Why it is not taken.
#[doc(alias = "ip_vs_proc_sync_conn")]
pub fn accept(record: &Record<'_>) -> Result<Accepted, Unfit> {
    let has = |flag: u32| record.flags & flag != 0;
    let is_template = has(TEMPLATE);
    if has(ONE_PACKET) || has(NO_CLIENT_PORT) {
        return Err(Unfit::Flags);
    }
    if has(IN_SEQUENCE | OUT_SEQUENCE) {
        return Err(Unfit::Sequences);
    }
    match (record.engine_name, record.engine_data) {
        (None, None) => {}
        (Some(name), Some(_)) if is_template && name == sip::NAME.as_bytes() => {}
        _ => return Err(Unfit::Engine),
    }
    let families = [record.client, record.virtual_address, record.destination];
    if families.iter().any(|address| address.is_ipv4() != record.client.is_ipv4())
        || is_nobody(record.client) && !is_template
    {
        return Err(Unfit::Addresses);
    }
    let protocol = Protocol::from_number(record.protocol);
    let state = match (protocol, is_template) {
        // As a state in a template nothing but this is known; version 0 has others there.
        (_, true) => u8::from(record.state == 1) * state::ASSURED,
        (Some(protocol), false) => state_of(protocol, record.state).ok_or(Unfit::State)?,
        (None, false) => return Err(Unfit::Protocol),
    };
    if protocol.is_none() && record.protocol != 0 {
        return Err(Unfit::Protocol);
    }
    let seconds = match record.timeout {
        // A second is the least; 31 days, beyond what any timeout is, the most.
        Some(seconds) => Some(seconds.clamp(1, 31 * 86_400)),
        None => is_template.then_some(TEMPLATE_TIMEOUT),
    };
    Ok(Accepted {
        protocol,
        is_template,
        state,
        inactive: has(INACTIVE) || is_template,
        no_output: has(NO_OUTPUT),
        seconds,
    })
}

/// Our number for a state that a protocol has a number for.
fn state_of(protocol: Protocol, number: u16) -> Option<u8> {
    let number = u8::try_from(number).ok()?;
    match protocol {
        Protocol::Tcp => tcp::State::from_number(number).map(|state| state as u8),
        Protocol::Udp => (number == udp::STATE).then_some(state::UDP),
        Protocol::Sctp => sctp::State::from_number(number).map(|state| state::SCTP + state as u8),
    }
}

fn is_nobody(address: IpAddr) -> bool {
    address.is_unspecified() || address.is_multicast()
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::sync::tests::web as record;

    #[test]
    fn a_connection_is_taken_as_it_is_told() {
        let accepted = Accepted {
            protocol: Some(Protocol::Tcp),
            is_template: false,
            state: 1,
            inactive: false,
            no_output: true,
            seconds: Some(900),
        };
        assert_eq!(accept(&record()), Ok(accepted));
        let closed = Record { flags: INACTIVE, state: 5, timeout: None, ..record() };
        let inactive = Accepted { state: 5, inactive: true, no_output: false, seconds: None, ..accepted };
        assert_eq!(accept(&closed), Ok(inactive));
        // Bits that have no meaning here are passed over.
        assert!(accept(&Record { flags: 0xffff_0020, ..record() }).is_ok());
    }

    #[test]
    fn states_are_the_protocols_own() {
        let state = |protocol, state| accept(&Record { protocol, state, ..record() }).map(|it| it.state);
        assert_eq!(state(6, 10), Ok(10));
        assert_eq!(state(6, 11), Err(Unfit::State));
        assert_eq!(state(6, 0x101), Err(Unfit::State));
        assert_eq!((state(17, 0), state(17, 1)), (Ok(state::UDP), Err(Unfit::State)));
        assert_eq!((state(132, 8), state(132, 14)), (Ok(state::SCTP + 8), Err(Unfit::State)));
        assert_eq!((state(50, 0), state(0, 0)), (Err(Unfit::Protocol), Err(Unfit::Protocol)));
    }

    #[test]
    fn templates_have_states_of_their_own() {
        let template = |protocol, state, timeout| {
            let accepted =
                accept(&Record { protocol, state, timeout, flags: TEMPLATE, client_port: 0, ..record() })?;
            Ok((accepted.protocol, accepted.state, accepted.inactive, accepted.seconds))
        };
        let tcp = Some(Protocol::Tcp);
        assert_eq!(template(6, 1, Some(60)), Ok((tcp, state::ASSURED, true, Some(60))));
        assert_eq!(template(6, 0, None), Ok((tcp, 0, true, Some(180))));
        assert_eq!(template(6, 9, Some(0)), Ok((tcp, 0, true, Some(1))));
        assert_eq!(template(0, 1, Some(60)), Ok((None, state::ASSURED, true, Some(60))));
        assert_eq!(template(50, 1, Some(60)), Err(Unfit::Protocol));
    }

    #[test]
    fn what_is_not_taken() {
        for flags in [ONE_PACKET, NO_CLIENT_PORT, NO_CLIENT_PORT | TEMPLATE] {
            assert_eq!(accept(&Record { flags, ..record() }), Err(Unfit::Flags));
        }
        assert_eq!(accept(&Record { flags: OUT_SEQUENCE, ..record() }), Err(Unfit::Sequences));
        assert_eq!(accept(&Record { engine_name: Some(b"sip"), ..record() }), Err(Unfit::Engine));
        let engine = |flags, name, data| {
            let record = Record { flags, protocol: 17, state: 0, engine_name: Some(name), ..record() };
            accept(&Record { engine_data: data, ..record }).map(|accepted| accepted.is_template)
        };
        assert_eq!(engine(TEMPLATE, b"sip", Some(b"call")), Ok(true));
        for (flags, name, data) in [
            (0, &b"sip"[..], Some(&b"call"[..])),
            (TEMPLATE, b"sip", None),
            (TEMPLATE, b"pis", Some(b"call")),
        ] {
            assert_eq!(engine(flags, name, data), Err(Unfit::Engine));
        }
        let addresses = |client| accept(&Record { client, ..record() });
        assert_eq!(addresses(Ipv6Addr::LOCALHOST.into()), Err(Unfit::Addresses));
        assert_eq!(addresses(Ipv4Addr::UNSPECIFIED.into()), Err(Unfit::Addresses));
    }
}
