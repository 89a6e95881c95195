//! The compiler for the BPF target: a rustup nightly with `rust-src`, or Debian's `rustc-web`.
//!
//! The host's own code is always built by the stable toolchain that runs this program. BPF needs another one
//! because `core` has to be built for the target (`-Z build-std`), which stable Rust does not do.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};

use crate::command;

/// The LLVM that bpf-linker is built against; a compiler with a newer one makes bitcode it cannot read.
pub const LLVM: u32 = 22;

/// The oldest compiler that the workspace's `rust-version` allows, as its minor version.
const RELEASE: u32 = 95;

/// A compiler that can build for BPF.
#[derive(Debug)]
pub enum Toolchain {
    /// A toolchain of rustup, by the name of its directory.
    Rustup(String),
    /// `/usr/bin/rustc` and `/usr/bin/cargo`, as the packages `rustc-web` and `cargo-web` install them.
    Debian,
}

/// What `rustc -vV` says, as far as it matters here.
#[derive(Debug, PartialEq)]
struct Version {
    release: String,
    minor: u32,
    llvm: u32,
}

impl Toolchain {
    /// Finds a toolchain that is ready for use.
    pub fn find() -> Option<Self> {
        Self::rustup().or_else(Self::debian)
    }

    /// Tells whether rustup has a toolchain of the name `nightly`.
    pub fn has_nightly() -> bool {
        nightlies()
            .iter()
            .any(|name| name.starts_with("nightly-x86_64") || name.starts_with("nightly-aarch64"))
    }

    fn rustup() -> Option<Self> {
        nightlies().into_iter().map(Self::Rustup).find(|toolchain| toolchain.check().is_ok())
    }

    fn debian() -> Option<Self> {
        Some(Self::Debian).filter(|toolchain| toolchain.check().is_ok())
    }

    /// Says what is wrong with this toolchain, or describes it.
    pub fn check(&self) -> Result<String> {
        let (name, rustc, sysroot) = match self {
            Self::Rustup(name) => {
                let root = rustup_home().context("no rustup")?.join("toolchains").join(name);
                (format!("rustup's {name}"), root.join("bin/rustc"), root)
            }
            Self::Debian => ("Debian's rustc-web".to_owned(), "/usr/bin/rustc".into(), "/usr".into()),
        };
        let core = sysroot.join("lib/rustlib/src/rust/library/core");
        anyhow::ensure!(core.is_dir(), "{name} has no source of the standard library");
        if matches!(self, Self::Debian) {
            anyhow::ensure!(Path::new("/usr/bin/cargo").exists(), "{name} is there without cargo-web");
        }
        let said = command::output(command::clean(rustc).arg("-vV"))?;
        let version = Version::parse(&said).with_context(|| format!("{name}: cannot read its version"))?;
        anyhow::ensure!(version.minor >= RELEASE, "{name} is {}, older than 1.{RELEASE}", version.release);
        anyhow::ensure!(version.llvm <= LLVM, "{name} has LLVM {}, newer than {LLVM}", version.llvm);
        Ok(format!("{name} {} (LLVM {})", version.release, version.llvm))
    }

    /// Makes a command that runs this toolchain's cargo with unstable options allowed.
    pub fn cargo(&self) -> Command {
        match self {
            Self::Rustup(name) => {
                let mut command = command::clean("rustup");
                command.args(["run", name.as_str(), "cargo"]);
                command
            }
            Self::Debian => {
                let mut command = command::clean("/usr/bin/cargo");
                command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
                command
            }
        }
    }

    /// Makes a command that runs this toolchain's clippy; its first argument is to be `clippy`.
    pub fn clippy(&self) -> Command {
        match self {
            Self::Rustup(_) => self.cargo(),
            Self::Debian => {
                // cargo would take rustup's proxy of that name instead, which comes before /usr/bin.
                let mut command = command::clean("/usr/bin/cargo-clippy");
                command.env("CARGO", "/usr/bin/cargo");
                command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
                command
            }
        }
    }

    /// Says where this toolchain's clippy is, or that it is not there.
    pub fn check_clippy(&self) -> Result<String> {
        let driver = match self {
            Self::Rustup(name) => {
                rustup_home().context("no rustup")?.join("toolchains").join(name).join("bin/clippy-driver")
            }
            Self::Debian => "/usr/bin/clippy-driver".into(),
        };
        anyhow::ensure!(driver.exists(), "no {}", driver.display());
        Ok(driver.display().to_string())
    }
}

impl Version {
    fn parse(said: &str) -> Option<Self> {
        let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let release = field("release:")?.to_owned();
        let minor = release.split('.').nth(1)?.parse().ok()?;
        let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
        Some(Self { release, minor, llvm })
    }
}

/// Returns the names of rustup's nightlies, dated ones too.
fn nightlies() -> Vec<String> {
    let Some(home) = rustup_home() else { return Vec::new() };
    let Ok(entries) = fs::read_dir(home.join("toolchains")) else { return Vec::new() };
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("nightly"))
        .collect();
    names.sort();
    names
}

fn rustup_home() -> Option<PathBuf> {
    env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".rustup")))
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn reads_the_version_of_a_compiler() {
        let said = "rustc 1.96.0 (ac68faa20 2026-05-25)\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        let wanted = Version { release: "1.97.0-nightly".to_owned(), minor: 97, llvm: 22 };
        assert_eq!(Version::parse(said), Some(wanted));
        assert_eq!(Version::parse("release: new\n"), None);
    }
}
