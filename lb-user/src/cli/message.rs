//! What goes to standard error, and the exit status that goes with it.
//!
//! The only place that turns a director's [`Error`] into ipvsadm's words. Statuses: 2 for a faulty command
//! line, 255 for a refused change and for syntax errors, 1 for a refused listing.

use std::io::{self, Write};

use super::options::{CommandKind, Slot};
use crate::director::Error;

/// Why a command line was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Complaint {
    /// The first option is no command: the line that points to the help, status 255.
    Try,
    /// A syntax error after the command, status 255; restoring goes on.
    Syntax(Vec<u8>),
    /// Any other fault of the command line, status 2.
    Usage(Vec<u8>),
    /// The director refused a change, status 255; restoring goes on.
    Refused(Vec<u8>),
    /// The director refused a listing, status 1.
    Unlisted(Vec<u8>),
}

impl Complaint {
    /// A fault of the command line in fixed words.
    pub fn usage(text: impl Into<Vec<u8>>) -> Self {
        Self::Usage(text.into())
    }

    /// A fault of the command line that quotes a word: `text` is "before `" or the like, and "'" is added.
    pub fn quoting(before: &str, word: &[u8], after: &str) -> Self {
        Self::Usage([before.as_bytes(), word, after.as_bytes()].concat())
    }

    /// An option that does not go with the command.
    pub fn illegal(slot: Slot, with: &str, kind: &str) -> Self {
        Self::usage(format!("Illegal '{}' option with the '{with}' {kind}", slot.name()))
    }

    /// An option that is missing.
    pub fn missing(slot: Slot, with: &str, kind: &str) -> Self {
        Self::usage(format!("You need to supply the '{}' option for the '{with}' {kind}", slot.name()))
    }

    /// Two options that exclude each other, the second found against the first.
    pub fn conflict(second: Slot, first: Slot, with: &str, kind: &str) -> Self {
        Self::usage(format!(
            "The option '{}' conflicts with the '{}' option in the '{with}' {kind}",
            second.name(),
            first.name()
        ))
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Try | Self::Syntax(_) | Self::Refused(_) => 255,
            Self::Usage(_) => 2,
            Self::Unlisted(_) => 1,
        }
    }

    /// Whether it ends a whole restore, not only its line.
    pub fn ends_restore(&self) -> bool {
        !matches!(self, Self::Syntax(_) | Self::Refused(_))
    }

    /// What to do about it, where that is not plain.
    fn advice(&self) -> Option<&'static str> {
        let (table, text) = match self {
            Self::Refused(text) | Self::Unlisted(text) => (&ADVICE[..], text),
            Self::Usage(text) => (&USAGE_ADVICE[..], text),
            Self::Syntax(text) if text.ends_with(b": unknown option") => {
                return Some("`xipvs --help` lists the options");
            }
            Self::Try | Self::Syntax(_) => return None,
        };
        table.iter().find(|(words, _)| words.as_bytes() == text).map(|(_, advice)| *advice)
    }

    /// Writes it, with what to do about it if `with_advice`; `program` is the name that the program was called by.
    pub fn write(&self, program: &[u8], with_advice: bool, to: &mut dyn Write) -> io::Result<()> {
        let mut line = match self {
            Self::Try if with_advice => FIRST.into(),
            Self::Try => {
                [b"Try `", program, b" -h' or '", program, b" --help' for more information."].concat()
            }
            Self::Syntax(text) | Self::Usage(text) | Self::Refused(text) | Self::Unlisted(text) => {
                text.clone()
            }
        };
        if with_advice && let Some(advice) = self.advice() {
            line.extend_from_slice(b"; ");
            line.extend_from_slice(advice.as_bytes());
        }
        line.push(b'\n');
        to.write_all(&line)
    }
}

/// What is said under the name `xipvs` when the first option is no command.
const FIRST: &str = "the first word is a command, such as -A or -Ln; `xipvs --help` lists them";

/// What to do about a refusal, by ipvsadm's words for it. Said under the name `xipvs` only.
const ADVICE: [(&str, &str); 9] = [
    ("No such service", "`xipvs -Ln` lists the services"),
    ("Service not defined", "add it first, with -A; `xipvs -Ln` lists the services"),
    ("Service already exists", "-E replaces its settings"),
    ("No such destination", "`xipvs -Ln` lists the destinations; a port counts unless the method is -m"),
    ("Destination already exists", "-e replaces its settings"),
    (
        "Scheduler or persistence engine not found",
        "-s takes rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh, --pe takes sip",
    ),
    ("Daemon has already run", "`xipvs -L --daemon` shows it, --stop-daemon ends it"),
    ("No daemon is running", "`xipvs -L --daemon` shows those that run"),
    ("Numerical result out of range", "-y must not be above -x"),
];

/// What to do about a faulty command line, likewise.
const USAGE_ADVICE: [(&str, &str); 6] = [
    ("illegal virtual server address[:port] specified", "as in 192.0.2.1:80, [2001:db8::1]:80 or name:http"),
    (
        "illegal real server address[:port] specified",
        "as in 192.0.2.1, 192.0.2.1:80, [2001:db8::1]:80 or name:http",
    ),
    ("Zero port specified for non-persistent service", "name a port, or take every port with -p"),
    ("illegal weight specified", "-w takes 0 to 2147483647"),
    ("One-Packet Scheduling is only for UDP virtual services", "-o goes with -u or -f"),
    ("Different address family is allowed only for tunneling servers", "-i makes it one"),
];

/// The complaint for a director's refusal of a command.
pub fn refusal(command: CommandKind, error: &Error) -> Complaint {
    let text = words(command, error).into_bytes();
    match command {
        CommandKind::List | CommandKind::Save => Complaint::Unlisted(text),
        _ => Complaint::Refused(text),
    }
}

/// What is printed when the director cannot be reached at all.
pub fn cannot_start(error: &Error) -> String {
    let reason = words(CommandKind::Help, error);
    match error {
        Error::Unavailable(_) | Error::Unsupported(_) => format!("Can't initialize ipvs: {reason}\n"),
        _ => format!(
            "Can't initialize ipvs: {reason}\n\
             Are you sure that IP Virtual Server is built in the kernel or as module?\n"
        ),
    }
}

/// What went wrong, in ipvsadm's words. A director names what its command makes of an error number; what has
/// no name of its own has the same words for every command.
fn words(command: CommandKind, error: &Error) -> String {
    use CommandKind::{AddDestination, DeleteDestination, EditDestination};
    match error {
        Error::NoSuchService if matches!(command, AddDestination | EditDestination | DeleteDestination) => {
            "Service not defined".into()
        }
        Error::NoIpvs => Error::Errno(libc::ENOPROTOOPT).to_string(),
        Error::Errno(libc::ENOMEM) => "Memory allocation problem".into(),
        Error::Errno(libc::EOPNOTSUPP) => "Operation not supported with IPv6".into(),
        Error::Errno(libc::EAFNOSUPPORT) => "Operation not supported with specified address family".into(),
        Error::Errno(libc::EMSGSIZE) => "Module is wrong version".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::check;
    use super::super::names::FileNames;
    use super::super::parse::parse;
    use super::*;

    #[test]
    fn advice_is_for_words_that_are_said_and_under_one_name_only() {
        use CommandKind as C;
        let refusals = [
            refusal(C::DeleteService, &Error::NoSuchService),
            refusal(C::AddDestination, &Error::NoSuchService),
            refusal(C::AddService, &Error::ServiceExists),
            refusal(C::DeleteDestination, &Error::NoSuchDestination),
            refusal(C::AddDestination, &Error::DestinationExists),
            refusal(C::AddService, &Error::UnknownScheduler),
            refusal(C::StartDaemon, &Error::DaemonRuns),
            refusal(C::StopDaemon, &Error::NoDaemon),
            refusal(C::AddDestination, &Error::OutOfRange),
        ];
        assert_eq!(refusals.len(), ADVICE.len());
        for (complaint, (words, advice)) in refusals.iter().zip(ADVICE) {
            let written = |with_advice| {
                let mut line = Vec::new();
                complaint.write(b"xipvs", with_advice, &mut line).unwrap();
                String::from_utf8(line).unwrap()
            };
            assert_eq!(written(false), format!("{words}\n"));
            assert_eq!(written(true), format!("{words}; {advice}\n"));
        }
        assert_eq!(Complaint::usage("No such service").advice(), None);
    }

    #[test]
    fn advice_for_faulty_command_lines_is_for_what_they_say() {
        let names = FileNames::parse("", "");
        let complaint = |line: &str| {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            match parse(&words, &names, false, true) {
                Ok(typed) => check(&typed).unwrap_err(),
                Err(complaint) => complaint,
            }
        };
        let lines = [
            "-A -t 192.0.2.1:http",
            "-d -t 192.0.2.1:80 -r 192.0.2.1:x",
            "-A -t 192.0.2.1",
            "-a -t 192.0.2.1:80 -r 192.0.2.2 -w -1",
            "-A -t 192.0.2.1:80 -o",
            "-a -t 192.0.2.1:80 -r 2001:db8::1 -m",
        ];
        for (line, (words, advice)) in lines.into_iter().zip(USAGE_ADVICE) {
            let complaint = complaint(line);
            assert_eq!(complaint, Complaint::usage(words), "{line}");
            assert_eq!(complaint.advice(), Some(advice), "{line}");
        }
        assert_eq!(complaint("-L --bogus").advice(), Some("`xipvs --help` lists the options"));
        assert_eq!(complaint("-L -n -n").advice(), None);
    }

    #[test]
    fn the_same_condition_is_worded_by_its_operation() {
        use CommandKind as C;
        for (command, error, text) in [
            (C::AddDestination, Error::NoSuchService, "Service not defined"),
            (C::DeleteService, Error::NoSuchService, "No such service"),
            (C::StartDaemon, Error::Errno(libc::ENODEV), "No such device"),
            (C::AddService, Error::Errno(libc::EOPNOTSUPP), "Operation not supported with IPv6"),
            (C::Clear, Error::NoIpvs, "Protocol not available"),
            (C::AddService, Error::Unsupported("no SCTP".into()), "no SCTP"),
        ] {
            assert_eq!(refusal(command, &error), Complaint::Refused(text.into()));
        }
        let listed = refusal(C::List, &Error::NoSuchService);
        assert_eq!((listed.status(), listed.ends_restore()), (1, true));
    }
}
