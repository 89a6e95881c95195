//! `cargo xtask golden --generate`: cases put together at random, for the real ipvsadm to answer.
//!
//! A seed always makes the same cases. They are drawn from values at the limits of what is accepted and just beyond,
//! options in any order and spelling, and restore files that fail in the middle. Not drawn is what is known to
//! differ (see "Known bugs not copied" in `COMPATIBILITY.md`): marks above 2147483647, lists of commas alone,
//! a last line that ends in blanks. The options stand here anew, so that a fault in ours is not in the test too.

use serde_json::{Map, json};

use super::Record;

/// Commands before a case: the interfaces that the sync daemon may use.
const PRE: [&str; 5] = [
    "ip link add dum0 type dummy",
    "ip addr add 192.0.2.1/24 dev dum0",
    "ip addr add 2001:db8:ff::1/64 dev dum0 nodad",
    "ip link set dum0 up",
    "ip link add down0 type dummy",
];

/// The rules that a case begins with: some of these, in this order.
const RULES: [&str; 18] = [
    "-A -t 10.0.0.1:80 -s rr",
    "-A -t 192.168.7.9:443 -s sh -p 60",
    "-A -u 172.16.0.1:53 -o",
    "-A -t [2001:db8::1]:80",
    "-A -u [fd00::1]:53 -p 60 -M 64",
    "-A -f 1 -s wrr",
    "-A -f 2 -6",
    "-A -f 65536",
    "-A -t 10.0.0.1:0 -p",
    "-A --sctp-service 10.0.0.1:81 -s mh -b mh-port",
    "-a -t 10.0.0.1:80 -r 10.0.0.2:80 -m",
    "-a -t 10.0.0.1:80 -r 192.168.1.1:80 -g",
    "-a -t 10.0.0.1:80 -r 172.16.5.5:80 -i",
    "-a -t 10.0.0.1:80 -r 10.0.0.3:8080 -m -w 3 -x 10 -y 5",
    "-a -f 1 -r 10.0.0.2",
    "-a -f 2 -6 -r 2001:db8::2",
    "-a -t [2001:db8::1]:80 -r [2001:db8::2]:80 -m",
    "-a -u 172.16.0.1:53 -r 10.0.0.4 -i --tun-type gue --tun-port 6080",
];

/// An option: its letter ("" if it has none), its long name, usual values and odd ones; no values, no argument.
struct Spelled {
    letter: &'static str,
    long: &'static str,
    usual: &'static [&'static str],
    odd: &'static [&'static str],
    optional: bool,
}

const fn flag(letter: &'static str, long: &'static str) -> Spelled {
    Spelled { letter, long, usual: &[], odd: &[], optional: false }
}

const fn with(
    letter: &'static str,
    long: &'static str,
    usual: &'static [&'static str],
    odd: &'static [&'static str],
) -> Spelled {
    Spelled { letter, long, usual, odd, optional: false }
}

#[rustfmt::skip]
const SERVICES: &[&str] = &[
    "10.0.0.1:80", "10.0.0.1:80", "10.0.0.1:81", "192.168.7.9:443", "172.16.0.1:53", "vip:http", "10.0.0.1:0",
    "[2001:db8::1]:80", "[2001:db8::1]:80", "[fd00::1]:53", "[vip6]:80", "[::1]:1",
];
#[rustfmt::skip]
const ODD_SERVICES: &[&str] = &[
    "10.0.0.1", "2001:db8::1", "12345", "", "[", "[10.0.0.1]:80", ":", ":80", "10.0.0.1:", "10.0.0.1:65535",
    "10.0.0.1:65536", "10.0.0.1:-1", "10.0.0.1:nosuch", "nosuch.invalid:80", "0x0a000001:80", "10.1:80",
    "012.0.0.1:80", "10.0.0.1 x:80", "[::1]", "[::1]:", "::1%lo", "[::ffff:10.0.0.1]:80", "10.0.0.1:+80",
    "10.0.0.1: 80", "10.0.0.1:080", "10.0.0.1:0x50", "0.0.0.0", "0.0.0.0:0", "[::]:0", "255.255.255.255:80",
    "224.0.0.1:80", "1:2:3:4:5:6:7::", "::1.2.3.4", "[::1:2]:80", "[::1.2.3.4]:80", "10.0.0.256:80",
    "localhost:80", "10.0.0.1:domain", "10.0.0.1:http-alt", "10.0.0.1:only-udp", "[vip]:80", "vip6:80",
    "10.0.0.1:80:80", "[fe80::1%lo]:80", "[2001:db8::1]80", "[2001:db8::1", "2001:db8::1]:80",
];
#[rustfmt::skip]
const SERVERS: &[&str] = &[
    "10.0.0.2:80", "10.0.0.2:80", "192.168.1.1:80", "10.0.0.3:8080", "10.0.0.3:8080", "10.0.0.4", "10.0.0.4:0",
    "172.16.5.5:http", "rs1", "rs2:http", "[2001:db8::2]:80", "[2001:db8::2]:80", "2001:db8::3",
    "[fd00::2]:8080", "[rs6]:80",
];
#[rustfmt::skip]
const ODD_SERVERS: &[&str] = &[
    "0.0.0.0:80", "224.0.0.1:80", "255.255.255.255:80", "127.0.0.1:80", "240.0.0.1:80", "0.0.0.1:80", "[::]:80",
    "[ff02::1]:80", "[fe80::1]:80", "[::ffff:1.2.3.4]:80", "[fec0::1]:80", "[::1.2.3.4]:80", "[100::]:80",
    "[2002::1]:80", "[::1]:80", "10.0.0.2:65536", "10.0.0.2:", "10.0.0.2:nosuch", "nosuch.invalid", "", "[", ":80",
    "10.2:80", "010.0.0.2:80", "[10.0.0.2]:80", "192.0.2.1:80", "192.0.2.255:80", "[2001:db8:ff::1]:80",
];
#[rustfmt::skip]
const ODD_NUMBERS: &[&str] = &[
    "-1", "-0", "+7", " 8", "9 ", "1.5", "0x10", "", "99999999999999999999", "-99999999999999999999", "010",
    "2147483647", "2147483648", "4294967295", "4294967296", "-2147483648", "1e3", "x", "1x", "--", "９",
];

const TCP: Spelled = with("t", "tcp-service", SERVICES, ODD_SERVICES);
const UDP: Spelled = with("u", "udp-service", SERVICES, ODD_SERVICES);
const SCTP: Spelled = with("", "sctp-service", SERVICES, ODD_SERVICES);
const MARK: Spelled = with(
    "f",
    "fwmark-service",
    &["1", "1", "2", "65536", "2147483647"],
    &["0", "-1", "x", "", "+3", " 4", "1x", "4294967296"],
);
const IPV6: Spelled = flag("6", "ipv6");
const SERVER: Spelled = with("r", "real-server", SERVERS, ODD_SERVERS);
const TUNNEL: Spelled = flag("i", "ipip");
#[rustfmt::skip]
const OF_SERVICES: [Spelled; 7] = [
    with("s", "scheduler",
        &["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh"],
        &["none", "nosuch", "", "RR", "rr ", "wlc-with-a-long-name", "twos"]),
    with("b", "sched-flags",
        &["flag-1", "flag-2", "sh-fallback", "sh-port", "mh-fallback", "mh-port", "flag-1,flag-2", "sh-port,sh-fallback"],
        &["flag-3", "flag-3,,flag-1,", "sh", "", "flag-1 ,flag-2", "SH-PORT", "sh-port,mh-port", "flag-4", "flag-1,flag-1"]),
    Spelled { letter: "p", long: "persistent", usual: &["1", "60", "360", "2678400"], odd: ODD_NUMBERS, optional: true },
    with("M", "netmask",
        &["255.255.255.0", "255.255.0.0", "255.255.255.255", "64", "128"],
        &["24", "0", "129", "1", "/24", "vip", "64x", "0xffffff00", "-1", " 48", "+32", "255.0.255.0", "0.0.0.0", "", "ffff::"]),
    with("", "pe", &["sip"], &["nosuch", "", "SIP", "sip-with-a-long-name"]),
    flag("o", "ops"),
    with("p", "persistent", &["2678401", "86400"], ODD_NUMBERS),
];
const METHODS: [Spelled; 3] = [flag("g", "gatewaying"), TUNNEL, flag("m", "masquerading")];
const NUMBERS_OF_SERVERS: [Spelled; 3] = [
    with("w", "weight", &["0", "1", "5", "100", "65535", "65536"], ODD_NUMBERS),
    with("x", "u-threshold", &["0", "1", "5", "100"], ODD_NUMBERS),
    with("y", "l-threshold", &["0", "1", "5", "100"], ODD_NUMBERS),
];
const OF_TUNNELS: [Spelled; 5] = [
    with("", "tun-type", &["ipip", "gue", "gue", "gre"], &["GUE", "", "gue ", "vxlan"]),
    with("", "tun-port", &["1", "6080", "65535"], ODD_NUMBERS),
    flag("", "tun-nocsum"),
    flag("", "tun-csum"),
    flag("", "tun-remcsum"),
];
const OF_LISTINGS: [Spelled; 14] = [
    flag("n", "numeric"),
    flag("n", "numeric"),
    flag("c", "connection"),
    flag("", "timeout"),
    flag("", "daemon"),
    flag("", "stats"),
    flag("", "rate"),
    flag("", "thresholds"),
    flag("", "persistent-conn"),
    flag("", "tun-info"),
    flag("", "exact"),
    flag("X", "exact"),
    flag("", "sort"),
    flag("", "numeric"),
];
#[rustfmt::skip]
const OF_DAEMONS: [Spelled; 7] = [
    with("", "mcast-interface", &["lo", "dum0", "dum0"], &["eth0", "", "nosuch", "a-very-long-interface-name", "down0"]),
    with("", "mcast-interface", &["dum0"], &["lo"]),
    with("", "syncid", &["0", "1", "255"], ODD_NUMBERS),
    with("", "sync-maxlen", &["64", "1400", "1484", "65535"], ODD_NUMBERS),
    with("", "mcast-group", &["224.0.0.82", "ff02::5"], &["10.0.0.1", "224.1", "::1", "fe80::1", "x", "", "ff05::5"]),
    with("", "mcast-port", &["1", "8849", "65535"], ODD_NUMBERS),
    with("", "mcast-ttl", &["1", "64", "255"], ODD_NUMBERS),
];
#[rustfmt::skip]
const COMMANDS: [&str; 21] = [
    "-A", "-E", "-D", "-C", "-L", "-l", "-a", "-e", "-d", "-S", "-Z", "--set", "-h", "-v", "--bogus", "-k", "--start-daemon",
    "--add-service", "--list", "--zero", "--clear",
];
const TIMES: &[&str] = &["0", "1", "120", "900", "2147483", "2147484", "300"];
const STRAY: [&str; 8] = ["foo", "-", "--", "", "-L", "-Q", "--nope", "--weight"];
const LISTINGS: [&[&str]; 8] = [
    &["-L"],
    &["-Ln"],
    &["-Ln", "--thresholds"],
    &["-L", "--tun-info"],
    &["-Ln", "--persistent-conn"],
    &["-S"],
    &["-Ln", "--stats"],
    &["-L", "--rate", "--exact"],
];

/// Makes so many cases, without the answers.
pub fn cases(seed: u64, count: u32) -> Vec<Record> {
    let mut random = Random(seed);
    (0..count).flat_map(|number| case(&mut random, &format!("generated/{seed}-{number}"))).collect()
}

fn case(random: &mut Random, name: &str) -> Vec<Record> {
    let share = 20 + random.below(80);
    let rules: Vec<&str> = RULES.iter().filter(|_| random.below(100) < share).copied().collect();
    let mut steps = vec![(vec!["ipvsadm".to_owned(), "-R".to_owned()], Some(rules.join("\n") + "\n"))];
    for _ in 0..4 + random.below(5) {
        steps.push(if random.percent(15) {
            let program = random.pick(&["ipvsadm", "ipvsadm", "ipvsadm-restore"]);
            let argv = ["ipvsadm", "-R"].iter().take(if program == "ipvsadm" { 2 } else { 1 });
            let mut argv: Vec<String> = argv.map(|word| (*word).to_owned()).collect();
            program.clone_into(&mut argv[0]);
            (argv, Some(restore_file(random)))
        } else {
            let mut argv = vec!["ipvsadm".to_owned()];
            argv.extend(command(random, 20));
            (argv, None)
        });
    }
    for listing in [&["-Sn"][..], random.pick(&LISTINGS)] {
        let words = std::iter::once("ipvsadm").chain(listing.iter().copied());
        steps.push((words.map(str::to_owned).collect(), None));
    }
    let record = |(step, (argv, stdin)): (usize, (Vec<String>, Option<String>))| {
        let mut record = Map::new();
        for (field, value) in [
            ("case", json!(name)),
            ("step", json!(step)),
            ("argv", json!(argv)),
            ("stdin", json!(stdin)),
            ("stdout", json!("")),
            ("stderr", json!("")),
            ("status", json!(0)),
        ] {
            record.insert(field.into(), value);
        }
        if step == 0 {
            record.insert("pre".into(), json!(PRE));
        }
        record
    };
    steps.into_iter().enumerate().map(record).collect()
}

/// Lines of which most are right, with one in the middle that is likely wrong.
fn restore_file(random: &mut Random) -> String {
    let mut lines = Vec::new();
    let count = 2 + random.below(8);
    let wrong = random.below(count);
    for number in 0..count {
        let odd = if number == wrong { 60 } else { 3 };
        let line = if random.percent(30) && number != wrong {
            random.pick(&RULES).to_owned()
        } else {
            let words: Vec<String> =
                command(random, odd).into_iter().filter(|word| !word.is_empty()).collect();
            words.join(random.pick(&[" ", " ", "  ", "\t"]))
        };
        let before = random.pick(&["", "", "", "ipvsadm ", "  ", "\t"]);
        let after = random.pick(&["", "", "", " ", "\r"]);
        lines.push(format!("{before}{line}{after}"));
    }
    if random.percent(20) {
        let place = random.below(lines.len() as u64) as usize;
        lines.insert(place, random.pick(&["", "# x", "ipvsadm", "   ", "-h", "-R", "-S -n"]).to_owned());
    }
    let text = lines.join("\n");
    // A last line that ends in blanks is known to be lost.
    if random.percent(20) { text.trim_end().to_owned() } else { text + "\n" }
}

/// The words of a command line; so many of a hundred values are odd.
fn command(random: &mut Random, odd: u64) -> Vec<String> {
    let mut command: Vec<String> = Vec::new();
    let mut options: Vec<Vec<String>> = Vec::new();
    let several = |random: &mut Random, of: &[Spelled], most: u64, options: &mut Vec<Vec<String>>| {
        for _ in 0..random.below(most + 1) {
            let option = &of[random.below(of.len() as u64) as usize];
            options.push(option_words(random, option, odd));
        }
    };
    match random.below(100) {
        0..20 => {
            command.push(random.pick(&["-A", "-A", "-E"]).into());
            options.push(service(random, odd));
            several(random, &OF_SERVICES, 3, &mut options);
        }
        20..55 => {
            let which = random.pick(&["-a", "-a", "-a", "-e", "-d"]);
            command.push(which.into());
            options.push(service(random, odd));
            options.push(option_words(random, &SERVER, odd));
            if which != "-d" {
                several(random, &METHODS, 1, &mut options);
                several(random, &NUMBERS_OF_SERVERS, 3, &mut options);
            }
            if random.percent(20) {
                options.push(option_words(random, &TUNNEL, odd));
                several(random, &OF_TUNNELS, 3, &mut options);
            }
        }
        55..62 => {
            command.push(random.pick(&["-D", "-Z"]).into());
            options.push(service(random, odd));
        }
        62..75 => {
            command.push("-L".into());
            several(random, &OF_LISTINGS, 3, &mut options);
            if random.percent(30) {
                options.push(service(random, odd));
            }
        }
        75..80 => {
            command.push("--set".into());
            let count = random.pick(&[2, 3, 3, 3, 3, 4]);
            options.extend((0..count).map(|_| vec![random.value(TIMES, ODD_NUMBERS, odd)]));
        }
        80..88 => {
            command.push(random.pick(&["--start-daemon", "--stop-daemon"]).into());
            command.push(random.value(&["master", "backup"], &["x", "", "MASTER"], odd));
            several(random, &OF_DAEMONS, 3, &mut options);
        }
        _ => {
            command.push(random.pick(&COMMANDS).into());
            for _ in 0..random.below(5) {
                options.push(any_option(random, odd));
            }
        }
    }
    if random.below(250) < odd {
        options.push(any_option(random, odd));
    }
    if random.below(600) < odd {
        options.push(vec![random.pick(&STRAY).into()]);
    }
    if random.percent(50) {
        random.shuffle(&mut options);
    }
    if random.below(2000) < odd {
        options.insert(0, std::mem::take(&mut command));
    }
    let mut words: Vec<String> = command.into_iter().chain(options.into_iter().flatten()).collect();
    let is_letter = |word: &String| word.len() == 2 && word.starts_with('-') && word != "--";
    if words.len() > 1 && is_letter(&words[0]) && is_letter(&words[1]) && random.percent(25) {
        let second = words.remove(1);
        words[0].push_str(&second[1..]);
    }
    words
}

fn service(random: &mut Random, odd: u64) -> Vec<String> {
    match random.below(6) {
        0..3 => option_words(random, &TCP, odd),
        3 => option_words(random, &UDP, odd),
        4 => option_words(random, &SCTP, odd),
        _ => {
            let mut words = option_words(random, &MARK, odd);
            if random.percent(40) {
                words.extend(option_words(random, &IPV6, odd));
            }
            words
        }
    }
}

fn any_option(random: &mut Random, odd: u64) -> Vec<String> {
    const ALL: [&[Spelled]; 8] = [
        &[TCP, UDP, SCTP, MARK, IPV6, SERVER],
        &OF_SERVICES,
        &METHODS,
        &NUMBERS_OF_SERVERS,
        &OF_TUNNELS,
        &OF_LISTINGS,
        &OF_DAEMONS,
        &[flag("", "nosort"), flag("S", "save")],
    ];
    let group = ALL[random.below(ALL.len() as u64) as usize];
    let option = &group[random.below(group.len() as u64) as usize];
    option_words(random, option, odd)
}

/// An option as it may be typed: by its letter or its name, the value in a word of its own or attached.
fn option_words(random: &mut Random, option: &Spelled, odd: u64) -> Vec<String> {
    let by_letter = !option.letter.is_empty() && random.percent(80);
    let name = if by_letter { format!("-{}", option.letter) } else { format!("--{}", option.long) };
    if option.usual.is_empty() || option.optional && random.percent(40) {
        let attached = random.below(1500) < odd;
        return vec![if attached { name + "=1" } else { name }];
    }
    let value = random.value(option.usual, option.odd, odd);
    match random.below(100) {
        0..12 => vec![format!("{name}={value}")],
        12..22 if by_letter => vec![name + &value],
        _ => vec![name, value],
    }
}

/// SplitMix64: small, and the same everywhere and always.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn percent(&mut self, share: u64) -> bool {
        self.below(100) < share
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    fn value(&mut self, usual: &[&str], odd: &[&str], share: u64) -> String {
        let from = if !odd.is_empty() && self.percent(share) { odd } else { usual };
        self.pick(from).to_owned()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_makes_the_same_cases() {
        assert_eq!(cases(7, 20), cases(7, 20));
        assert_ne!(cases(7, 20), cases(8, 20));
    }

    #[test]
    fn cases_hold_what_they_are_made_for() {
        let records = cases(1, 300);
        let holds = |wanted: &dyn Fn(&Record) -> bool| records.iter().filter(|record| wanted(record)).count();
        let has_word = |record: &Record, wanted: &dyn Fn(&str) -> bool| {
            record["argv"].as_array().unwrap().iter().any(|word| wanted(word.as_str().unwrap()))
        };
        let restores = holds(&|record| record["step"] != 0 && record["stdin"].is_string());
        let attached =
            holds(&|record| has_word(record, &|word| word.starts_with("--") && word.contains('=')));
        let bundled =
            holds(&|record| has_word(record, &|word| word.starts_with("-At") || word.starts_with("-at")));
        let empty = holds(&|record| has_word(record, &str::is_empty));
        for (what, found) in
            [("restores", restores), ("=", attached), ("bundles", bundled), ("empty words", empty)]
        {
            assert!(found >= 20, "{found} {what} in {} records", records.len());
        }
        assert_eq!(records.last().unwrap()["case"], json!("generated/1-299"));
    }
}
