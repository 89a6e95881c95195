//! Rules that mark packets, in words: those of `xipvs mark`, and in `import` those of other programs that say the same.
//!
//! IPVS counterpart: iptables' target `MARK`.

pub mod import;

use std::fmt;
use std::net::IpAddr;

use lb_common::mark::Rule;
use lb_common::protocol::Protocol;
use zerocopy::FromZeros;

use crate::director::{self, Error};

/// Every port.
pub(crate) const ALL_PORTS: [u16; 2] = [0, u16::MAX];

/// A rule for this mark that every packet matches.
pub fn any(mark: u32) -> Rule {
    Rule { mark, source_ports: ALL_PORTS, destination_ports: ALL_PORTS, ..Rule::new_zeroed() }
}

/// Adds a rule behind the others.
///
/// # Errors
///
/// When it is there already.
pub fn add(rules: &mut Vec<Rule>, rule: Rule) -> director::Result<()> {
    if rules.contains(&rule) {
        return Err(Error::Unsupported("Mark rule already exists".into()));
    }
    rules.push(rule);
    Ok(())
}

/// Deletes the rule of this number, from 1 on, or all.
///
/// # Errors
///
/// When there is no such rule.
pub fn delete(rules: &mut Vec<Rule>, number: Option<usize>) -> director::Result<()> {
    let Some(number) = number else {
        rules.clear();
        return Ok(());
    };
    let place = number.checked_sub(1).filter(|place| *place < rules.len());
    rules.remove(place.ok_or_else(|| Error::Unsupported(format!("There is no mark rule {number}")))?);
    Ok(())
}

/// What `xipvs mark delete` takes: a number, or `all`.
///
/// # Errors
///
/// When it is neither.
pub fn selection(text: &str) -> Result<Option<usize>, String> {
    if text == "all" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| format!("{text}: not the number of a rule, nor `all`"))
}

/// Reads the words after `xipvs mark add`.
///
/// # Errors
///
/// What is wrong with them, as a sentence.
pub fn rule(words: &[&str]) -> Result<Rule, String> {
    let (mark, options) = words.split_first().ok_or("no mark")?;
    let mut rule = any(number(mark)?);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let value = options.next().ok_or_else(|| format!("{option} wants a value"))?;
        match *option {
            "--family" => narrow(&mut rule, family(value)?)?,
            "--protocol" => rule.protocol = protocol(value)?,
            "--source" => from(&mut rule, value)?,
            "--destination" => to(&mut rule, value)?,
            "--source-ports" => rule.source_ports = ports(value)?,
            "--destination-ports" => rule.destination_ports = ports(value)?,
            "--interface" => rule.interface = interface(value)?,
            other => return Err(format!("{other}: no such option")),
        }
    }
    Ok(rule)
}

/// A rule as [`rule`] reads it.
pub struct Words<'a>(pub &'a Rule);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = self.0;
        write!(f, "{}", rule.mark)?;
        if rule.family != 0 && rule.source_prefix == 0 && rule.destination_prefix == 0 {
            write!(f, " --family ipv{}", rule.family)?;
        }
        if let Some(protocol) = Protocol::from_number(rule.protocol) {
            write!(f, " --protocol {}", protocol.name().to_lowercase())?;
        }
        for (option, address, bits) in [
            ("--source", rule.source, rule.source_prefix),
            ("--destination", rule.destination, rule.destination_prefix),
        ] {
            if bits > 0 {
                let [a, b, c, d, ..] = address;
                let address = if rule.family == 6 { address.into() } else { IpAddr::from([a, b, c, d]) };
                write!(f, " {option} {address}/{bits}")?;
            }
        }
        for (option, ports) in
            [("--source-ports", rule.source_ports), ("--destination-ports", rule.destination_ports)]
        {
            match ports {
                ALL_PORTS => {}
                [low, high] if low == high => write!(f, " {option} {low}")?,
                [low, high] => write!(f, " {option} {low}-{high}")?,
            }
        }
        if rule.interface != 0 {
            let name = nix::net::if_::if_indextoname(rule.interface);
            let name = name.map_or_else(|_| "?".into(), |name| name.to_string_lossy().into_owned());
            write!(f, " --interface {name}")?;
        }
        Ok(())
    }
}

/// Has a rule match only packets from a prefix.
fn from(rule: &mut Rule, text: &str) -> Result<(), String> {
    let (address, bits, family) = prefix(text)?;
    narrow(rule, family)?;
    (rule.source, rule.source_prefix) = (address, bits);
    Ok(())
}

/// Has a rule match only packets to a prefix.
fn to(rule: &mut Rule, text: &str) -> Result<(), String> {
    let (address, bits, family) = prefix(text)?;
    narrow(rule, family)?;
    (rule.destination, rule.destination_prefix) = (address, bits);
    Ok(())
}

/// Has a rule match only packets of a family.
fn narrow(rule: &mut Rule, family: u8) -> Result<(), String> {
    if rule.family != 0 && rule.family != family {
        return Err("no packet is of both families".into());
    }
    rule.family = family;
    Ok(())
}

/// `192.0.2.0/24`, `2001:db8::/32`, or an address alone: the address, the bits that count, and the family.
fn prefix(text: &str) -> Result<([u8; 16], u8, u8), String> {
    let wrong = || format!("{text}: not an address or prefix");
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let (length, family) = if address.is_ipv4() { (32, 4) } else { (128, 6) };
    let bits = bits.map_or(Ok(length), str::parse).map_err(|_| wrong())?;
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes = address.octets(),
    }
    let counting = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    if bits > length {
        return Err(wrong());
    }
    Ok(((u128::from_be_bytes(bytes) & counting).to_be_bytes(), bits, family))
}

/// `80` or `8000-8999` (or with a colon, as iptables has it).
fn ports(text: &str) -> Result<[u16; 2], String> {
    let (low, high) = text.split_once(['-', ':']).unwrap_or((text, text));
    match (low.parse(), high.parse()) {
        (Ok(low), Ok(high)) if low <= high => Ok([low, high]),
        _ => Err(format!("{text}: not a port or a range of ports")),
    }
}

/// `tcp`, `udp`, `sctp`, or a number.
fn protocol(text: &str) -> Result<u8, String> {
    let named = Protocol::ALL.into_iter().find(|protocol| protocol.name().eq_ignore_ascii_case(text));
    named
        .map(Protocol::number)
        .or_else(|| text.parse().ok().filter(|number| Protocol::from_number(*number).is_some()))
        .ok_or_else(|| format!("{text}: not tcp, udp or sctp"))
}

fn family(text: &str) -> Result<u8, String> {
    match text {
        "ipv4" => Ok(4),
        "ipv6" => Ok(6),
        _ => Err(format!("{text}: not ipv4 or ipv6")),
    }
}

/// The number of an interface.
fn interface(name: &str) -> Result<u32, String> {
    nix::net::if_::if_nametoindex(name).map_err(|_| format!("{name}: no such interface"))
}

/// A mark: decimal, or with 0x hexadecimal; not 0.
fn number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.ok().filter(|mark| *mark != 0).ok_or_else(|| format!("{text}: not a mark"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for line in [
            "7",
            "7 --family ipv6",
            "4294967295 --protocol udp",
            "1 --protocol tcp --source 198.51.100.0/24 --destination 192.0.2.1/32 --source-ports 1024-65535 \
             --destination-ports 80 --interface lo",
            "9 --source 2001:db8::/32 --destination 2001:db8:0:ff80::/57",
        ] {
            let read = rule(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
            assert_eq!(Words(&read).to_string(), line);
        }
        let short = |line: &str| Words(&rule(&line.split(' ').collect::<Vec<_>>()).unwrap()).to_string();
        assert_eq!(short("0x10 --source 192.0.2.7/24"), "16 --source 192.0.2.0/24");
        assert_eq!(short("1 --destination 2001:db8::1"), "1 --destination 2001:db8::1/128");
        for line in [
            "",
            "0",
            "x",
            "1 --protocol icmp",
            "1 --source 1.2.3",
            "1 --source 192.0.2.0/33",
            "1 --source 192.0.2.1 --destination 2001:db8::1",
            "1 --family ipv4 --source ::1",
            "1 --destination-ports 9-8",
            "1 --what 1",
            "1 --protocol",
        ] {
            assert!(rule(&line.split_whitespace().collect::<Vec<_>>()).is_err(), "{line}");
        }
    }
}
