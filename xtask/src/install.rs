//! `cargo xtask install`: the binary under its four names, manual pages and completions, below one directory.
//!
//! A file that is there and was not installed by this is left alone, and nothing is installed: the real ipvsadm
//! may be it. Interfaces are attached by nobody but the operator. What is installed stands in [`LINKS`] and [`PAGES`].

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{build, command};

/// The names beside its own that the binary is installed under.
const LINKS: [&str; 3] = ["ipvsadm", "ipvsadm-save", "ipvsadm-restore"];
/// The names that have a manual page and a completion, and the options of `xipvs generate` that print them.
const PAGES: [(&str, &[&str]); 2] = [("xipvs", &[]), ("ipvsadm", &["--ipvsadm"])];

/// Installs xipvs.
#[derive(Debug, clap::Args)]
pub struct Install {
    /// Below which directory programs, manual pages and completions go.
    #[arg(long, value_name = "DIRECTORY", default_value = "/usr/local")]
    prefix: PathBuf,
    /// Put everything below this directory, as for a package; links and pages stay as they will be without it.
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    root: PathBuf,
    /// Leave out the names of ipvsadm: only xipvs, for where the real ipvsadm stays.
    #[arg(long)]
    no_ipvsadm: bool,
    /// Install this binary instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

impl Install {
    /// Carries out `cargo xtask install`.
    pub fn run(&self) -> Result<()> {
        let binary = match &self.binary {
            Some(binary) => binary.clone(),
            None => {
                build::run()?;
                command::target().join("release/xipvs")
            }
        };
        for file in self.files(&binary)? {
            println!("installed {}", file.display());
        }
        Ok(())
    }

    /// Puts all files in their places and returns these.
    fn files(&self, binary: &Path) -> Result<Vec<PathBuf>> {
        let prefix = self.root.join(self.prefix.strip_prefix("/").unwrap_or(&self.prefix));
        let programs = prefix.join("sbin");
        let installed = programs.join("xipvs");
        let links: Vec<PathBuf> =
            LINKS.iter().filter(|_| !self.no_ipvsadm).map(|name| programs.join(name)).collect();
        for link in &links {
            ensure!(
                is_free(link)?,
                "{} is another program's; remove it, choose another --prefix, or leave it with --no-ipvsadm",
                link.display()
            );
        }
        fs::create_dir_all(&programs).with_context(|| programs.display().to_string())?;
        // Beside it first: one that runs cannot be written over.
        let new = programs.join("xipvs.new");
        fs::copy(binary, &new).with_context(|| binary.display().to_string())?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
        fs::rename(&new, &installed)?;
        let mut files = vec![installed.clone()];
        for link in links {
            if fs::symlink_metadata(&link).is_err() {
                symlink("xipvs", &link).with_context(|| link.display().to_string())?;
            }
            files.push(link);
        }
        let manual = prefix.join("share/man/man8");
        let completions = prefix.join("share/bash-completion/completions");
        for (name, options) in &PAGES[..if self.no_ipvsadm { 1 } else { 2 }] {
            let page = generated(&installed, "man", options)?;
            files.push(write(&manual.join(format!("{name}.8")), &page)?);
            files.push(write(&completions.join(name), &generated(&installed, "completion", options)?)?);
        }
        // ipvsadm's page is theirs too.
        for name in LINKS[1..].iter().filter(|_| !self.no_ipvsadm) {
            files.push(write(&manual.join(format!("{name}.8")), ".so man8/ipvsadm.8\n")?);
        }
        Ok(files)
    }
}

/// Whether nothing is there, or a link of ours.
fn is_free(link: &Path) -> Result<bool> {
    match fs::read_link(link) {
        Ok(target) => Ok(target == Path::new("xipvs")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        // Not a link.
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error).with_context(|| link.display().to_string()),
    }
}

fn generated(binary: &Path, what: &str, options: &[&str]) -> Result<String> {
    command::output(Command::new(binary).args(["generate", what]).args(options))
}

fn write(file: &Path, text: &str) -> Result<PathBuf> {
    let directory = file.parent().context("a file lies in a directory")?;
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    fs::write(file, text).with_context(|| file.display().to_string())?;
    Ok(file.into())
}
