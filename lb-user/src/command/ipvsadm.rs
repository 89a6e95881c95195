//! ipvsadm's command line, on the director that was chosen.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::thread;

use xipvs::cli::names::SystemNames;
use xipvs::cli::{self, Streams, Tool};
use xipvs::director::kernel::Kernel;
use xipvs::director::{self, Director};

use super::exit::FAILED;
use super::front::DirectorName;
use super::open;

/// Puts a terminal's cursor into the corner and clears the screen (ECMA-48).
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";

/// Runs ipvsadm's command line on a director.
pub fn run(tool: Tool, director: DirectorName, arguments: &[OsString]) -> u8 {
    let opened: director::Result<Box<dyn Director>> = match director {
        DirectorName::Xdp => open::xdp().map(|director| Box::new(director) as _),
        DirectorName::Kernel if tool == Tool::Xipvs => Kernel::open().map(|director| Box::new(director) as _),
        DirectorName::Kernel => Kernel::open_telling().map(|director| Box::new(director) as _),
    };
    let mut director = match opened {
        Ok(director) => director,
        Err(error) if tool == Tool::Xipvs => {
            eprintln!("xipvs: {error}");
            return FAILED;
        }
        Err(error) => {
            eprint!("{}", cli::cannot_start(&error));
            return FAILED;
        }
    };
    let names = SystemNames::default();
    let again = cli::watch_interval(arguments, &names);
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let clear = again.is_some() && io::stdout().is_terminal();
    loop {
        if clear {
            // A failure to clear the screen is a failure to list, too.
            let _ = stdout.write_all(CLEAR);
        }
        let mut streams =
            Streams { stdin: &mut io::stdin().lock(), stdout: &mut stdout, stderr: &mut io::stderr() };
        let status = cli::run(arguments, &mut streams, director.as_mut(), &names);
        match (stdout.flush(), again) {
            (Err(error), _) if error.kind() != io::ErrorKind::BrokenPipe && status == 0 => {
                eprintln!("cannot write to standard output: {error}");
                return 1;
            }
            (Ok(()), Some(interval)) if status == 0 => thread::sleep(interval),
            _ => return status,
        }
    }
}
