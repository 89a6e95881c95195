//! Scenarios as they are written: a file of steps, a line each. `tests/scenarios/README.md` has the format.
//!
//! Reading only; [`super::side`] carries steps out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::protocol::Protocol;

use super::packet::{ACK, AH, CHUNKS, Content, ESP, FIN, INIT, PSH, RST, SYN, Shape, URG};

/// Bytes that a datagram carries unless told otherwise.
const DATAGRAM: usize = 5;
/// Bytes that a chunk of SCTP carries unless told otherwise: INIT has that many at least.
const CHUNK: usize = 16;

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
    /// A line of shell in the namespace of one director, or of each.
    Shell(Whose, String),
    /// A sysctl of IPVS and its value, on both.
    Set(String, u32),
    /// A rule that marks packets, in the words of `xipvs mark add`.
    Mark(Vec<String>),
    /// Has programs of the director wait for datagrams.
    Listen(Vec<SocketAddr>),
    /// Packets of each flow, one flow after the other.
    Packets { flows: Vec<Flow>, events: Vec<Event> },
    /// Compares listings.
    Check,
    /// Waits until both list so many connections.
    Await(usize),
    /// Waits until both list fewer connections than this.
    AwaitBelow(usize),
}

/// One of the two directors, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    Kernel,
    Xdp,
    Both,
}

/// What a client has with a virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    pub protocol: Protocol,
    pub client: SocketAddr,
    pub service: SocketAddr,
}

/// A packet of a flow, or about one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Whether it comes from the flow's server, not from the client.
    pub answer: bool,
    pub what: What,
    pub shape: Shape,
    /// Whether the XDP director drops what the kernel sends on.
    pub lost: bool,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Packet(Content),
    /// An ICMP error about a packet that the other side has sent.
    Error {
        /// Type and code.
        kind: [u8; 2],
        /// The word behind the checksum: an MTU.
        word: u32,
        /// Whose it is, if not of the one that the packet was for.
        by: Option<IpAddr>,
        /// Bytes of the packet that it quotes, if not as many as fit.
        quoted: Option<usize>,
        /// It is about what came through a tunnel, not about the tunnel's packet.
        inner: bool,
    },
}

impl Event {
    /// Whether it asks for a new connection.
    pub fn opens(&self) -> bool {
        let asks = match self.what {
            What::Packet(Content::Segment { flags, .. }) => flags & SYN != 0,
            What::Packet(Content::Chunks { first, .. }) => first == INIT,
            _ => false,
        };
        asks && !self.answer
    }
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
        "both:" => Ok(Action::Shell(Whose::Both, rest.into())),
        "set" => {
            let (name, value) = rest.split_once('=').ok_or("set NAME=VALUE")?;
            Ok(Action::Set(name.into(), value.parse().map_err(|_| "set NAME=VALUE")?))
        }
        "mark" => Ok(Action::Mark(text_words(rest))),
        "listen" => Ok(Action::Listen(endpoints(rest)?)),
        "sctp" => packets(Protocol::Sctp, rest),
        "tcp" => packets(Protocol::Tcp, rest),
        "udp" => packets(Protocol::Udp, rest),
        "check" if rest.is_empty() => Ok(Action::Check),
        "await" => {
            let count = rest.strip_suffix(" connections").unwrap_or_default();
            let (make, count): (fn(_) -> _, _) = match count.strip_prefix("below ") {
                Some(count) => (Action::AwaitBelow, count),
                None => (Action::Await, count),
            };
            count.parse().map(make).map_err(|_| "await [below] N connections".into())
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

/// `[<]KIND[:BYTES][,WORD...]`
fn event(protocol: Protocol, text: &str) -> Result<Event, String> {
    let wrong = || format!("{text} is no event of {}", protocol.name());
    let (answer, rest) = text.strip_prefix('<').map_or((false, text), |rest| (true, rest));
    let mut words = rest.split(',');
    let first = words.next().unwrap_or_default();
    let (kind, number) = match first.split_once(':') {
        Some((kind, number)) => (kind, Some(number.parse().map_err(|_| wrong())?)),
        None => (first, None),
    };
    let mut what = match kind.strip_prefix('!') {
        Some(kind) => {
            let (kind, code) = kind.split_once('/').ok_or_else(wrong)?;
            let kind = [kind.parse().map_err(|_| wrong())?, code.parse().map_err(|_| wrong())?];
            What::Error { kind, word: number.unwrap_or(0), by: None, quoted: None, inner: false }
        }
        None => {
            What::Packet(content(protocol, kind, number.map(|number| number as usize)).ok_or_else(wrong)?)
        }
    };
    let (mut shape, mut lost) = (Shape::PLAIN, false);
    for word in words {
        if word == "lost" {
            lost = true;
            continue;
        }
        tell(word, &mut what, &mut shape).ok_or_else(|| format!("{word}: {}", wrong()))?;
    }
    Ok(Event { answer, what, shape, lost })
}

/// What a packet of this kind carries.
fn content(protocol: Protocol, kind: &str, payload: Option<usize>) -> Option<Content> {
    match protocol {
        Protocol::Udp => {
            let number = payload;
            let payload = payload.unwrap_or(DATAGRAM);
            match kind {
                "D" => Some(Content::Datagram { payload }),
                "SIP" => Some(Content::Message { call: number }),
                "ESP" => Some(Content::Other { protocol: ESP, payload }),
                "AH" => Some(Content::Other { protocol: AH, payload }),
                _ => None,
            }
        }
        Protocol::Tcp => {
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
            let flags = kind.chars().try_fold(0, |flags, letter| Some(flags | flag(letter)?))?;
            (!kind.is_empty()).then(|| Content::Segment { flags, payload: payload.unwrap_or(0) })
        }
        Protocol::Sctp => {
            let number = |name: &str| CHUNKS.iter().position(|chunk| *chunk == name).map(|place| place as u8);
            let (first, second) = match kind.split_once('+') {
                Some((first, second)) => (first, Some(number(second)?)),
                None => (kind, None),
            };
            Some(Content::Chunks { first: number(first)?, second, payload: payload.unwrap_or(CHUNK) })
        }
    }
}

/// What one more word says of an event.
fn tell(word: &str, what: &mut What, shape: &mut Shape) -> Option<()> {
    let (name, value) = word.split_once('=').unwrap_or((word, ""));
    match (name, what) {
        ("ttl", _) => shape.time_to_live = value.parse().ok()?,
        ("tos", _) => shape.service_type = value.parse().ok()?,
        ("pieces", _) => shape.pieces = Some(value.parse().ok().filter(|size| size % 8 == 0 && *size > 0)?),
        ("by", What::Error { by, .. }) => *by = Some(value.parse().ok()?),
        ("quote", What::Error { quoted, .. }) => *quoted = Some(value.parse().ok()?),
        (_, what) => match (word, what) {
            ("cut", _) => shape.may_be_cut = true,
            ("options", _) => shape.options = true,
            ("bad", _) => shape.spoilt = true,
            ("backwards", _) => shape.backwards = true,
            ("inner", What::Error { inner, .. }) => *inner = true,
            _ => return None,
        },
    }
    Some(())
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
    fn events_say_what_is_sent_and_how() {
        let Event { answer, what, shape, lost } = event(Protocol::Udp, "<D:1000,cut,ttl=1,lost").unwrap();
        assert_eq!((answer, what, lost), (true, What::Packet(Content::Datagram { payload: 1000 }), true));
        assert_eq!(shape, Shape { may_be_cut: true, time_to_live: 1, ..Shape::PLAIN });
        let Event { answer, what, .. } = event(Protocol::Tcp, "!3/4:1400,by=203.0.113.1").unwrap();
        let by = Some("203.0.113.1".parse().unwrap());
        assert_eq!(
            (answer, what),
            (false, What::Error { kind: [3, 4], word: 1400, by, quoted: None, inner: false })
        );
        let Event { what, .. } = event(Protocol::Sctp, "COOKIE-ECHO+DATA").unwrap();
        assert_eq!(what, What::Packet(Content::Chunks { first: 10, second: Some(0), payload: 16 }));
    }

    #[test]
    fn a_line_that_means_nothing_is_named() {
        for line in [
            "tcp 1.2.3.4:5 > 1.2.3.4:80",
            "tcp 1.2.3.4 > 1.2.3.4:80 S",
            "udp 1.2.3.4:5 > 1.2.3.4:80 S",
            "udp 1.2.3.4:5 > 1.2.3.4:80 D,inner",
            "udp 1.2.3.4:5 > 1.2.3.4:80 D,pieces=7",
            "sctp 1.2.3.4:5 > 1.2.3.4:80 D",
            "tcp 1.2.3.4:5 > 1.2.3.4:80 !3",
            "set schedule_icmp",
            "tcp 1.2.3.4:5 > 1.2.3.4:80 ESP",
            "chek",
            "await 3",
        ] {
            assert!(Scenario::parse("x", line).unwrap_err().starts_with("x:1: "), "{line}");
        }
    }
}
