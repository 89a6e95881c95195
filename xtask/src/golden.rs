//! `cargo xtask golden`: records the corpus of `tests/golden` anew, from the real ipvsadm in the reference VM.
//!
//! Shows what differs from what is written there, or writes it. The commands come from the files themselves,
//! so that a new case is a line with `case`, `step` and `argv`, recorded with `--write`. Cases with packets or
//! doctored counters are left as they are: they need more than a VM.

mod generate;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::thread;

use anyhow::Context as _;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Map, Value, json};

/// Records commands of the corpus again.
#[derive(Debug, clap::Args)]
pub struct Golden {
    /// Write what was recorded instead of showing what differs.
    #[arg(long)]
    write: bool,

    /// Seconds for the guest to live.
    #[arg(long, default_value_t = 540)]
    timeout: u32,

    /// Inside the guest: record the files into this directory.
    #[arg(long, hide = true, value_name = "DIRECTORY")]
    into: Option<PathBuf>,

    /// Write cases that are put together at random into the file, for recording: the same ones for the same seed.
    #[arg(long, value_name = "SEED", conflicts_with = "write")]
    generate: Option<u64>,

    /// How many cases to put together.
    #[arg(long, default_value_t = 100, requires = "generate")]
    cases: u32,

    /// The files.
    files: Vec<PathBuf>,
}

/// The remark on a record whose help text is cut off: it is not ours to keep.
const WITHOUT_HELP: &str =
    "the version line only; the help text that follows is not kept here: ours has its own words";

/// A line of the corpus.
type Record = Map<String, Value>;

impl Golden {
    /// Records on the host by way of the guest, or does the guest's part.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        if let Some(seed) = self.generate {
            let [file] = &self.files[..] else { anyhow::bail!("name the one file to write the cases into") };
            fs::write(file, lines(&generate::cases(seed, self.cases)))?;
            return Ok(ExitCode::SUCCESS);
        }
        match &self.into {
            Some(directory) => record_files(&self.files, directory),
            None => self.on_host(),
        }
    }

    fn on_host(&self) -> anyhow::Result<ExitCode> {
        anyhow::ensure!(!self.files.is_empty(), "name the files to record, such as tests/golden/zero.jsonl");
        let into = std::env::temp_dir().join(format!("xipvs-golden-{}", std::process::id()));
        fs::create_dir_all(&into)?;
        let this = std::env::current_exe()?;
        let mut guest = Command::new(&this);
        guest.arg("vm").arg("--timeout").arg(self.timeout.to_string()).arg("--share").arg(&into).arg("--");
        guest.arg(&this).arg("golden").arg("--into").arg(&into);
        for file in &self.files {
            guest.arg(file.canonicalize().with_context(|| file.display().to_string())?);
        }
        let status = guest.status()?;
        anyhow::ensure!(status.success(), "the reference VM did not record everything: {status}");
        let mut different = 0;
        for file in &self.files {
            let name = file.file_name().context("a file has a name")?;
            let recorded = fs::read_to_string(into.join(name))?;
            different += compare(&read_records(file)?, &parse_records(&recorded)?);
            if self.write {
                fs::write(file, recorded)?;
            }
        }
        fs::remove_dir_all(&into)?;
        println!("golden: {different} records differ");
        Ok(if self.write || different == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Prints the records that differ where they should not, and returns how many.
fn compare(old: &[Record], new: &[Record]) -> usize {
    let mut different = 0;
    for (old, new) in old.iter().zip(new) {
        let steady = !old.contains_key("unstable") && !old.contains_key("unordered");
        let same = ["stdout", "stderr", "status"].iter().all(|field| old.get(*field) == new.get(*field));
        let without_help =
            old.get("note").and_then(Value::as_str).is_some_and(|note| note.contains("help text"));
        if steady && !same && !without_help {
            different += 1;
            println!("- {}\n+ {}", Value::Object(old.clone()), Value::Object(new.clone()));
        }
    }
    different
}

/// The guest's part: every case in a namespace of its own.
fn record_files(files: &[PathBuf], into: &Path) -> anyhow::Result<ExitCode> {
    bring_closer(&["/usr/sbin/ipvsadm", "/usr/sbin/ipvsadm-save", "/usr/sbin/ipvsadm-restore", "/bin/bash"])?;
    for file in files {
        let folder = file.parent().context("a file lies in a directory")?;
        let names = folder.join("hosts");
        if names.exists() {
            bind(&names, "/etc/hosts")?;
            bind(&folder.join("services"), "/etc/services")?;
        }
        let records = read_records(file)?;
        let name = file.file_name().context("a file has a name")?;
        // Written case by case, so that what was recorded is not lost when the guest's time is up.
        let mut recorded = fs::File::create(into.join(name))?;
        for case in records.chunk_by(|a, b| a.get("case") == b.get("case")) {
            let needs_more =
                case.iter().any(|record| record.contains_key("traffic") || record.contains_key("env"));
            let case = if needs_more { case.to_vec() } else { record_apart(case)? };
            recorded.write_all(lines(&case).as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Records one case in a network namespace of its own: that of a thread, which the programs it starts are in as well.
fn record_apart(case: &[Record]) -> anyhow::Result<Vec<Record>> {
    let apart = || -> anyhow::Result<Vec<Record>> {
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
        record_case(case)
    };
    let recorded = thread::scope(|scope| scope.spawn(apart).join());
    recorded.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).with_context(|| lines(case))
}

/// Runs the commands of one case, one after the other.
fn record_case(case: &[Record]) -> anyhow::Result<Vec<Record>> {
    let mut records = case.to_vec();
    let commands = records.first().and_then(|record| record.get("pre")).and_then(Value::as_array);
    let commands: Vec<&str> = commands.into_iter().flatten().filter_map(Value::as_str).collect();
    prepare(&commands)?;
    for record in &mut records {
        let output = record_command(record)?;
        let status = match output.status.code() {
            Some(code) => code,
            // As a shell reports a death by signal.
            None => 128 + std::os::unix::process::ExitStatusExt::signal(&output.status).unwrap_or(0),
        };
        let mut stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some(end) = stdout.find("\nUsage:\n") {
            stdout.truncate(end + 1);
            record.insert("note".into(), json!(WITHOUT_HELP));
        }
        record.insert("stdout".into(), json!(stdout));
        record.insert("stderr".into(), json!(String::from_utf8_lossy(&output.stderr)));
        record.insert("status".into(), json!(status));
    }
    Ok(records)
}

fn record_command(record: &Record) -> anyhow::Result<Output> {
    let argv: Vec<&str> = record
        .get("argv")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let (program, arguments) = argv.split_first().context("a record without argv")?;
    let mut command = match record.get("user") {
        Some(_) => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| (*program).to_owned())?;
    let stdin = record.get("stdin").and_then(Value::as_str).unwrap_or_default();
    // A program that does not read its input closes it: that is its answer, not an error.
    let _ = child.stdin.take().context("a pipe")?.write_all(stdin.as_bytes());
    Ok(child.wait_with_output()?)
}

/// Puts copies in memory in the place of programs and their libraries: each start from the host's files takes half as
/// long again.
fn bring_closer(programs: &[&str]) -> anyhow::Result<()> {
    let listed = Command::new("ldd").args(programs).output().context("ldd")?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    let files: BTreeSet<&str> = libraries.chain(programs.iter().copied()).collect();
    for (number, file) in files.into_iter().enumerate() {
        let copy = PathBuf::from(format!("/dev/shm/{number}"));
        fs::copy(file, &copy).with_context(|| file.to_owned())?;
        bind(&copy, file)?;
    }
    Ok(())
}

fn bind(file: &Path, over: &str) -> anyhow::Result<()> {
    let status = Command::new("mount").arg("--bind").arg(file).arg(over).status()?;
    anyhow::ensure!(status.success(), "cannot put {} in the place of {over}", file.display());
    Ok(())
}

/// Runs a case's commands of `ip`, all in one process: starting one is slow in the guest.
fn prepare(commands: &[&str]) -> anyhow::Result<()> {
    let mut lines = "link set lo up\n".to_owned();
    for command in commands {
        let line = command.strip_prefix("ip ").with_context(|| format!("no command of ip: {command}"))?;
        lines += &format!("{}\n", line.trim_start_matches("-6 "));
    }
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("ip")?;
    ip.stdin.take().context("a pipe")?.write_all(lines.as_bytes())?;
    let status = ip.wait()?;
    anyhow::ensure!(status.success(), "{lines}: {status}");
    Ok(())
}

fn read_records(file: &Path) -> anyhow::Result<Vec<Record>> {
    parse_records(&fs::read_to_string(file).with_context(|| file.display().to_string())?)
}

fn parse_records(text: &str) -> anyhow::Result<Vec<Record>> {
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn lines(records: &[Record]) -> String {
    records.iter().map(|record| Value::Object(record.clone()).to_string() + "\n").collect()
}
