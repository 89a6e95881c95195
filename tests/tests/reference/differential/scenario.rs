//! Scenarios as they are written: a file of steps, a line each. `tests/scenarios/README.md` has the format.
//!
//! Reading only; [`super::side`] carries steps out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::protocol::Protocol;

use super::frame::{ACK, AH, ESP, FIN, PSH, RST, SYN, URG};

/// Bytes that a datagram carries unless told otherwise.
const DATAGRAM: usize = 5;

/// What is to be done on both directors.
#[derive(Debug)]
pub struct Scenario {
    pub steps: Vec<Step>,
    /// Frames of ICMP do not count.
    pub ignores_icmp: bool,
}

/// A line.
#[derive(Debug)]
pub struct Step {
    /// Counted from 1.
    pub line: usize,
    pub text: String,
    pub action: Action,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// A command of ipvsadm, which must succeed unless a refusal is what is to be compared.
    Ipvsadm { words: Vec<String>, refused: bool },
    /// A line of shell in the namespace of one director.
    Shell(Whose, String),
    /// A sysctl of IPVS and its value, on both.
    Set(String, u32),
    /// Packets of each flow, one flow after the other.
    Packets { flows: Vec<Flow>, events: Vec<Event> },
    /// Compares listings.
    Check,
    /// Waits until both list so many connections.
    Await(usize),
}

/// One of the two directors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    Kernel,
    Xdp,
}

/// What a client has with a virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    pub protocol: Protocol,
    pub client: SocketAddr,
    pub service: SocketAddr,
}

/// A packet of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Whether the flow's server sends it, not the client.
    pub answer: bool,
    pub what: What,
    /// TCP flags; nothing in anything else.
    pub flags: u8,
    /// Bytes behind the transport header.
    pub payload: usize,
}

/// What an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A packet of the flow's protocol.
    Own,
    /// A packet of another IP protocol between the flow's ends.
    Between(u8),
    /// An ICMP error of this type and code, with the MTU that it tells.
    Error { kind: u8, code: u8, mtu: u16 },
}

impl Scenario {
    /// Reads a file's text.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let mut scenario = Self { steps: Vec::new(), ignores_icmp: false };
        for (line, text) in (1..).zip(text.lines().map(str::trim)) {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            if text == "ignore icmp" {
                scenario.ignores_icmp = true;
                continue;
            }
            let action = action(text).map_err(|why| format!("{name}:{line}: {text}: {why}"))?;
            scenario.steps.push(Step { line, text: text.into(), action });
        }
        Ok(scenario)
    }
}

fn action(text: &str) -> Result<Action, String> {
    let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
    let words = |refused| Ok(Action::Ipvsadm { words: text_words(rest), refused });
    match verb {
        "ipvsadm" => words(false),
        "!ipvsadm" => words(true),
        "kernel:" => Ok(Action::Shell(Whose::Kernel, rest.into())),
        "xdp:" => Ok(Action::Shell(Whose::Xdp, rest.into())),
        "set" => {
            let (name, value) = rest.split_once('=').ok_or("set NAME=VALUE")?;
            Ok(Action::Set(name.into(), value.parse().map_err(|_| "set NAME=VALUE")?))
        }
        "tcp" => packets(Protocol::Tcp, rest),
        "udp" => packets(Protocol::Udp, rest),
        "check" if rest.is_empty() => Ok(Action::Check),
        "await" => {
            let count = rest.strip_suffix(" connections").and_then(|count| count.parse().ok());
            count.map(Action::Await).ok_or_else(|| "await N connections".into())
        }
        _ => Err("no such step".into()),
    }
}

fn text_words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// `CLIENTS > SERVICES EVENT...`
fn packets(protocol: Protocol, rest: &str) -> Result<Action, String> {
    let mut words = rest.split_whitespace();
    let (Some(clients), Some(">"), Some(services)) = (words.next(), words.next(), words.next()) else {
        return Err("CLIENTS > SERVICES EVENT...".into());
    };
    let (clients, services) = (endpoints(clients)?, endpoints(services)?);
    let flow =
        |client: &SocketAddr, service: &SocketAddr| Flow { protocol, client: *client, service: *service };
    let flows = clients.iter().flat_map(|client| services.iter().map(|service| flow(client, service)));
    let flows = flows.collect();
    let events = words.map(|word| event(protocol, word)).collect::<Result<Vec<_>, _>>()?;
    if events.is_empty() {
        return Err("no event".into());
    }
    Ok(Action::Packets { flows, events })
}

/// `[<]FLAGS[:BYTES]`, or `[<]!TYPE/CODE[:MTU]`
fn event(protocol: Protocol, word: &str) -> Result<Event, String> {
    let wrong = || format!("{word} is no event of {}", protocol.name());
    let (answer, rest) = word.strip_prefix('<').map_or((false, word), |rest| (true, rest));
    if let Some(error) = rest.strip_prefix('!') {
        let (error, mtu) = error.split_once(':').unwrap_or((error, "0"));
        let (kind, code) = error.split_once('/').ok_or_else(wrong)?;
        let number = |text: &str| text.parse().map_err(|_| wrong());
        let what =
            What::Error { kind: number(kind)?, code: number(code)?, mtu: mtu.parse().map_err(|_| wrong())? };
        return Ok(Event { answer, what, flags: 0, payload: 0 });
    }
    let (kind, payload) = match rest.split_once(':') {
        Some((kind, bytes)) => (kind, Some(bytes.parse().map_err(|_| wrong())?)),
        None => (rest, None),
    };
    if protocol == Protocol::Udp {
        let what = match kind {
            "D" => What::Own,
            "ESP" => What::Between(ESP),
            "AH" => What::Between(AH),
            _ => return Err(wrong()),
        };
        return Ok(Event { answer, what, flags: 0, payload: payload.unwrap_or(DATAGRAM) });
    }
    let flag = |letter| match letter {
        'F' => Some(FIN),
        'S' => Some(SYN),
        'R' => Some(RST),
        'P' => Some(PSH),
        'A' => Some(ACK),
        'U' => Some(URG),
        '.' => Some(0),
        _ => None,
    };
    let flags = kind.chars().try_fold(0, |flags, letter| Some(flags | flag(letter)?)).ok_or_else(wrong)?;
    if kind.is_empty() {
        return Err(wrong());
    }
    Ok(Event { answer, what: What::Own, flags, payload: payload.unwrap_or(0) })
}

/// `ADDRESS[-LAST]:PORT[-LAST]`, each range in the address's last part and in the port; ports vary faster.
fn endpoints(word: &str) -> Result<Vec<SocketAddr>, String> {
    let wrong = || format!("{word} is not ADDRESS[-LAST]:PORT[-LAST]");
    let (addresses, ports) = word.rsplit_once(':').ok_or_else(wrong)?;
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let ports = first.parse::<u16>().map_err(|_| wrong())?..=last.parse().map_err(|_| wrong())?;
    let bare = addresses.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let addresses: Vec<IpAddr> = match bare {
        Some(text) => {
            let (first, last) =
                text.split_once('-').map_or((text, None), |(first, last)| (first, Some(last)));
            let first: Ipv6Addr = first.parse().map_err(|_| wrong())?;
            let [.., low] = first.segments();
            let high = last.map_or(Ok(low), |last| u16::from_str_radix(last, 16)).map_err(|_| wrong())?;
            let with = |part| (u128::from(first) & !0xffff) | u128::from(part);
            (low..=high).map(|part: u16| Ipv6Addr::from(with(part)).into()).collect()
        }
        None => {
            let (first, last) =
                addresses.split_once('-').map_or((addresses, None), |(first, last)| (first, Some(last)));
            let first: Ipv4Addr = first.parse().map_err(|_| wrong())?;
            let [a, b, c, low] = first.octets();
            let high = last.map_or(Ok(low), str::parse).map_err(|_| wrong())?;
            (low..=high).map(|part| Ipv4Addr::from([a, b, c, part]).into()).collect()
        }
    };
    let all: Vec<SocketAddr> = addresses
        .into_iter()
        .flat_map(|address| ports.clone().map(move |port| SocketAddr::new(address, port)))
        .collect();
    if all.is_empty() { Err(wrong()) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_written_out() {
        let all = endpoints("198.51.100.7-8:1000-1001").unwrap();
        let shown: Vec<String> = all.iter().map(SocketAddr::to_string).collect();
        assert_eq!(
            shown,
            ["198.51.100.7:1000", "198.51.100.7:1001", "198.51.100.8:1000", "198.51.100.8:1001"]
        );
        let all = endpoints("[2001:db8::9-a]:80").unwrap();
        let shown: Vec<String> = all.iter().map(SocketAddr::to_string).collect();
        assert_eq!(shown, ["[2001:db8::9]:80", "[2001:db8::a]:80"]);
    }

    #[test]
    fn a_line_that_means_nothing_is_named() {
        for line in [
            "tcp 1.2.3.4:5 > 1.2.3.4:80",
            "tcp 1.2.3.4 > 1.2.3.4:80 S",
            "udp 1.2.3.4:5 > 1.2.3.4:80 S",
            "tcp 1.2.3.4:5 > 1.2.3.4:80 ESP",
            "udp 1.2.3.4:5 > 1.2.3.4:80 !3",
            "set schedule_icmp",
            "chek",
            "await 3",
        ] {
            assert!(Scenario::parse("x", line).unwrap_err().starts_with("x:1: "), "{line}");
        }
    }
}
