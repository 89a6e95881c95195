//! `cargo xtask setup`: looks after every need, one line each, and installs what is missing.
//!
//! What is needed, and the ways to get it, are the rows of `need`. Nothing here is done twice: a need whose
//! probe finds it costs that probe and no more.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::command;
use crate::need::{self, Group, NEEDS, Need, Way, venv};
use crate::toolchain::Toolchain;

/// How long apt or pip may take. Generous, because a kernel's packages take minutes to configure on a busy machine, and
/// dpkg is better not interrupted.
const DOWNLOAD: Duration = Duration::from_secs(1800);
/// rustup is the first way and the one that most often has no network; it retries by itself for minutes.
const RUSTUP: Duration = Duration::from_secs(120);
/// Building bpf-linker takes a minute on two cores.
const COMPILE: Duration = Duration::from_secs(1200);

const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_TEXT: &str =
    "#!/bin/sh\n# Written by xipvs's `cargo xtask setup` for the time of an installation.\nexit 101\n";

/// Carries out `cargo xtask setup`.
pub fn run(vm: bool) -> Result<()> {
    ensure(&[Group::Core, Group::Test, Group::Lint])?;
    if vm { ensure(&[Group::Vm]) } else { Ok(()) }
}

/// Sees to all needs of these groups; fails with the first that is missing and cannot be installed.
pub fn ensure(groups: &[Group]) -> Result<()> {
    see_to_all(groups, true)
}

/// Like [`ensure`], but says nothing of what it finds.
pub fn ensure_quietly(groups: &[Group]) -> Result<()> {
    see_to_all(groups, false)
}

fn see_to_all(groups: &[Group], tells_found: bool) -> Result<()> {
    let installer = Installer { tells_found, lists_are_fresh: Cell::new(false) };
    NEEDS.iter().filter(|need| groups.contains(&need.group)).try_for_each(|need| installer.see_to(need))
}

struct Installer {
    tells_found: bool,
    /// Whether apt's lists were renewed by this run; they are renewed only when something is to be installed.
    lists_are_fresh: Cell<bool>,
}

impl Installer {
    fn see_to(&self, need: &Need) -> Result<()> {
        let missing = match (need.probe)() {
            Ok(found) => {
                if self.tells_found {
                    say("found", need.name, &found);
                }
                return Ok(());
            }
            Err(missing) => missing,
        };
        let mut tried = Vec::new();
        for way in need.ways {
            say("missing", need.name, &format!("{missing}; trying {}", way.describe()));
            match self.go(way).and_then(|()| (need.probe)()) {
                Ok(found) => {
                    say("installed", need.name, &found);
                    return Ok(());
                }
                Err(error) => tried.push(format!("  {}: {error:#}", way.describe())),
            }
        }
        let remedies: Vec<_> = need.ways.iter().map(|way| format!("  {}", way.remedy())).collect();
        bail!(
            "{} is missing ({missing:#}) and could not be installed:\n{}\nInstall it by hand, one of:\n{}",
            need.name,
            tried.join("\n"),
            remedies.join("\n")
        )
    }

    fn go(&self, way: &Way) -> Result<()> {
        match way {
            Way::Nightly(_) | Way::HostComponents(_) => {
                command::quietly(command::clean("rustup").args(rustup(way)), RUSTUP)
            }
            Way::Apt { packages, services } => self.apt(packages, services),
            Way::Backports(packages) => backports(packages),
            Way::BpfLinker => bpf_linker(),
            Way::Python(package) => self.python(package),
            Way::MountBpffs => {
                ensure!(command::is_root(), "mounting needs root");
                command::quietly(command::clean("mount").args(MOUNT), DOWNLOAD)
            }
        }
    }

    fn apt(&self, packages: &[&str], services: &[&str]) -> Result<()> {
        let _policy = begin_apt()?;
        if !self.lists_are_fresh.replace(true) {
            // What an interrupted installation left half done; apt refuses to work until it is whole.
            command::quietly(command::clean("dpkg").args(["--configure", "--pending"]), DOWNLOAD)?;
            command::quietly(apt_get().arg("update"), DOWNLOAD)?;
        }
        let new: Vec<_> = services.iter().filter(|name| !has_service(name)).collect();
        command::quietly(apt_get().args(INSTALL).args(packages), DOWNLOAD)?;
        for service in new {
            // Debian starts a service again at the next boot unless it is told otherwise.
            command::quietly(command::clean("update-rc.d").args([service, "disable"]), DOWNLOAD)?;
            if Path::new("/bin/systemctl").exists() {
                command::quietly(command::clean("systemctl").args(["disable", service]), DOWNLOAD)?;
            }
        }
        Ok(())
    }

    fn python(&self, package: &str) -> Result<()> {
        if !Path::new("/usr/lib/python3/dist-packages").exists() || !has_ensurepip() {
            self.apt(&["python3-venv"], &[])?;
        }
        let venv = venv();
        // By its full name: a python of the user's own would not be there for the next user.
        command::quietly(command::clean("/usr/bin/python3").args(["-m", "venv"]).arg(&venv), DOWNLOAD)?;
        command::quietly(command::clean(venv.join("bin/pip")).args(["install", "--quiet", package]), DOWNLOAD)
    }
}

/// Debian's own rustc and rustc-web exclude each other; a package that is there is never taken away.
const INSTALL: [&str; 4] = ["install", "--yes", "--no-install-recommends", "--no-remove"];
const MOUNT: [&str; 4] = ["-t", "bpf", "bpf", "/sys/fs/bpf"];
const BPF_LINKER: [&str; 7] =
    ["install", "bpf-linker@0.13.0", "--locked", "--no-default-features", "--features", "llvm-22", "--force"];

impl Way {
    fn describe(&self) -> String {
        match self {
            Self::Apt { packages, .. } => format!("Debian's {}", packages.join(", ")),
            Self::Backports(packages) => format!("Debian's backports of {}", packages.join(", ")),
            Self::Nightly(component) => format!("rustup's nightly with {component}"),
            Self::HostComponents(names) => format!("rustup's {}", names.join(", ")),
            Self::BpfLinker => "bpf-linker 0.13.0 from crates.io (a minute)".to_owned(),
            Self::Python(package) => format!("PyPI's {package}"),
            Self::MountBpffs => "to mount it".to_owned(),
        }
    }

    /// Returns the command that an operator would type.
    fn remedy(&self) -> String {
        match self {
            Self::Apt { packages, .. } => format!("apt-get install {}", packages.join(" ")),
            Self::Backports(packages) => {
                format!("apt-get install -t RELEASE-backports {}", packages.join(" "))
            }
            Self::Nightly(_) | Self::HostComponents(_) => format!("rustup {}", rustup(self).join(" ")),
            Self::BpfLinker => format!("LLVM_PREFIX=/usr/lib/llvm-22 cargo {}", BPF_LINKER.join(" ")),
            Self::Python(package) => {
                let venv = venv().display().to_string();
                format!("python3 -m venv {venv} && {venv}/bin/pip install {package}")
            }
            Self::MountBpffs => format!("mount {}", MOUNT.join(" ")),
        }
    }
}

fn rustup(way: &Way) -> Vec<&'static str> {
    match *way {
        Way::Nightly(component) if Toolchain::has_nightly() => {
            vec!["component", "add", component, "--toolchain", "nightly"]
        }
        Way::Nightly(component) => {
            vec!["toolchain", "install", "nightly", "--profile", "minimal", "--component", component]
        }
        Way::HostComponents(names) => [&["component", "add"], names].concat(),
        _ => Vec::new(),
    }
}

/// Installs from the backports of the release that apt is set up for; its own lists of sources stay as they are.
fn backports(packages: &[&str]) -> Result<()> {
    let _policy = begin_apt()?;
    let targets = ["indextargets", "--format", "$(LABEL) $(CODENAME) $(REPO_URI)", "Created-By: Packages"];
    let targets = command::output(apt_get().args(targets))?;
    let release = |line: &str| {
        let mut words = line.split(' ');
        let is_release = words.next() == Some("Debian");
        let (name, address) = (words.next()?.to_owned(), words.next()?.to_owned());
        (is_release && !name.contains('-')).then_some((name, address))
    };
    let (name, address) = targets.lines().find_map(release).context("apt knows no release of Debian")?;
    let list = need::cache().join("backports.list");
    fs::create_dir_all(need::cache())?;
    fs::write(&list, format!("deb {address} {name}-backports main\n"))?;
    let sources = format!("Dir::Etc::SourceList={}", list.display());
    command::quietly(apt_get().args(["-o", &sources, "update"]), DOWNLOAD)?;
    let suite = format!("{name}-backports");
    let install = [&["-o", &sources, "-t", &suite], &INSTALL[..], packages].concat();
    command::quietly(apt_get().args(install), DOWNLOAD)
}

/// What must hold before packages are installed: they start no services for as long as the result lives.
fn begin_apt() -> Result<ServicePolicy> {
    ensure!(command::is_root(), "installing Debian packages needs root");
    ServicePolicy::forbid()
}

fn bpf_linker() -> Result<()> {
    let mut cargo = command::clean("cargo");
    // Built outside of the workspace: neither its target directory nor its configuration has a say.
    cargo.args(BPF_LINKER).env("LLVM_PREFIX", "/usr/lib/llvm-22").current_dir("/");
    command::quietly(&mut cargo, COMPILE)
}

fn apt_get() -> std::process::Command {
    let mut command = command::clean("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    command
}

fn has_service(name: &str) -> bool {
    Path::new("/etc/init.d").join(name).exists()
}

fn has_ensurepip() -> bool {
    command::output(command::clean("/usr/bin/python3").args(["-c", "import ensurepip, venv"])).is_ok()
}

/// Keeps packages that are being installed from starting their services, for as long as it lives.
struct ServicePolicy {
    written: Option<PathBuf>,
}

impl ServicePolicy {
    fn forbid() -> Result<Self> {
        let file = PathBuf::from(POLICY);
        // A policy of the machine's own stays; one that a killed run of ours left is taken over.
        if fs::read_to_string(&file).is_ok_and(|text| text != POLICY_TEXT) {
            return Ok(Self { written: None });
        }
        fs::write(&file, POLICY_TEXT).with_context(|| format!("cannot write {POLICY}"))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        Ok(Self { written: Some(file) })
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if let Some(file) = self.written.take()
            && let Err(error) = fs::remove_file(&file)
        {
            eprintln!("cannot remove {}: {error}", file.display());
        }
    }
}

/// Standard output is left to the chore: a command that runs in the VM may have its output read by a program.
fn say(what: &str, name: &str, about: &str) {
    eprintln!("{what:<9} {name}: {about}");
}
