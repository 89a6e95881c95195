//! What the chores need, as data: one row a need, with how to see it and the ways to get it.
//!
//! Carrying the rows out, in order, with one line each, is `setup`'s.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};

use crate::command;
use crate::toolchain::Toolchain;

/// When a need is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// To build, for the demo and for the tests.
    Core,
    /// For the tests with real programs, beside those of the demo.
    Test,
    /// For the lints of `cargo xtask ci`.
    Lint,
    /// For what the benchmark compares with.
    Bench,
    /// For the reference virtual machine.
    Vm,
}

/// One thing that has to be on this machine.
pub struct Need {
    /// What it is called in the line about it.
    pub name: &'static str,
    /// When it is needed.
    pub group: Group,
    /// Describes what is there, or says what is missing.
    pub probe: fn() -> Result<String>,
    /// How to get it; the first that works is enough.
    pub ways: &'static [Way],
}

/// A way to get something.
pub enum Way {
    /// Debian packages, and the services that come with them and are not to run by themselves.
    Apt { packages: &'static [&'static str], services: &'static [&'static str] },
    /// Debian packages from the release's backports, for a machine with others from there that the release's own exclude.
    Backports(&'static [&'static str]),
    /// A component of rustup's nightly, which is installed if there is none, and not updated if there is one.
    Nightly(&'static str),
    /// Components of the toolchain that this program runs in.
    HostComponents(&'static [&'static str]),
    /// bpf-linker, built from crates.io.
    BpfLinker,
    /// A PyPI package in xipvs's own virtual environment.
    Python(&'static str),
    /// The BPF file system, mounted.
    MountBpffs,
}

/// Every need, in the order in which they are looked after.
pub const NEEDS: &[Need] = &[
    Need {
        name: "BPF compiler",
        group: Group::Core,
        probe: bpf_compiler,
        ways: &[
            Way::Nightly("rust-src"),
            Way::Apt { packages: &["rustc-web", "cargo-web", "rust-web-src"], services: &[] },
        ],
    },
    Need {
        name: "LLVM 22",
        group: Group::Core,
        probe: llvm,
        ways: &[Way::Apt { packages: &["llvm-22-dev", "libzstd-dev", "zlib1g-dev", "g++"], services: &[] }],
    },
    Need { name: "BPF linker", group: Group::Core, probe: bpf_linker, ways: &[Way::BpfLinker] },
    Need { name: "BPF file system", group: Group::Core, probe: bpffs, ways: &[Way::MountBpffs] },
    Need {
        name: "iproute2",
        group: Group::Core,
        probe: || program("ip"),
        ways: &[Way::Apt { packages: &["iproute2"], services: &[] }],
    },
    Need {
        name: "ethtool",
        group: Group::Core,
        probe: || program("ethtool"),
        ways: &[Way::Apt { packages: &["ethtool"], services: &[] }],
    },
    Need {
        name: "nginx",
        group: Group::Core,
        probe: || program("nginx"),
        ways: &[Way::Apt { packages: &["nginx-light"], services: &["nginx"] }],
    },
    Need {
        name: "curl",
        group: Group::Core,
        probe: || program("curl"),
        ways: &[Way::Apt { packages: &["curl"], services: &[] }],
    },
    Need {
        name: "dnsmasq",
        group: Group::Test,
        probe: || program("dnsmasq"),
        ways: &[Way::Apt { packages: &["dnsmasq-base"], services: &[] }],
    },
    Need {
        name: "drill",
        group: Group::Test,
        probe: || program("drill"),
        ways: &[Way::Apt { packages: &["ldnsutils"], services: &[] }],
    },
    Need {
        name: "vsftpd",
        group: Group::Test,
        probe: || program("vsftpd"),
        ways: &[Way::Apt { packages: &["vsftpd"], services: &["vsftpd"] }],
    },
    Need {
        name: "rustfmt and clippy",
        group: Group::Lint,
        probe: host_lints,
        ways: &[Way::HostComponents(&["rustfmt", "clippy"])],
    },
    Need {
        name: "clippy for BPF",
        group: Group::Lint,
        probe: bpf_clippy,
        ways: &[Way::Nightly("clippy"), Way::Apt { packages: &["rust-web-clippy"], services: &[] }],
    },
    Need {
        name: "nftables",
        group: Group::Bench,
        probe: || program("nft"),
        ways: &[Way::Apt { packages: &["nftables"], services: &[] }],
    },
    Need {
        name: "reference kernel",
        group: Group::Vm,
        probe: kernel,
        ways: &[Way::Apt { packages: &["linux-image-amd64"], services: &[] }],
    },
    Need {
        name: "qemu",
        group: Group::Vm,
        probe: || program("qemu-system-x86_64"),
        ways: &[
            Way::Apt { packages: &["qemu-system-x86"], services: &[] },
            Way::Backports(&["qemu-system-x86"]),
        ],
    },
    // virtme-ng makes an initial file system around it, because Debian's kernel has 9p as a module.
    Need {
        name: "busybox",
        group: Group::Vm,
        probe: || program("busybox"),
        ways: &[Way::Apt { packages: &["busybox-static"], services: &[] }],
    },
    // virtme-ng asks it what a kernel image is.
    Need {
        name: "file",
        group: Group::Vm,
        probe: || program("file"),
        ways: &[Way::Apt { packages: &["file"], services: &[] }],
    },
    Need {
        name: "virtme-ng",
        group: Group::Vm,
        probe: || vng().map(|file| file.display().to_string()),
        ways: &[Way::Python("virtme-ng")],
    },
    Need {
        name: "ipvsadm",
        group: Group::Vm,
        probe: || program("ipvsadm"),
        ways: &[Way::Apt { packages: &["ipvsadm"], services: &["ipvsadm"] }],
    },
    // Scenarios have netfilter mark packets.
    Need {
        name: "iptables",
        group: Group::Vm,
        probe: || program("iptables"),
        ways: &[Way::Apt { packages: &["iptables"], services: &[] }],
    },
    Need {
        name: "keepalived",
        group: Group::Vm,
        probe: || program("keepalived"),
        ways: &[Way::Apt { packages: &["keepalived"], services: &["keepalived"] }],
    },
];

/// Returns where what is downloaded and found out is kept between checkouts and beyond `cargo clean`.
pub fn cache() -> PathBuf {
    let home = || Path::new(&env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("xipvs")
}

/// Returns the directory of the Python virtual environment that `Way::Python` installs into.
pub fn venv() -> PathBuf {
    cache().join("venv")
}

/// Finds the reference kernel: Debian's newest 6.1 in /boot.
pub fn reference_kernel() -> Result<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for entry in fs::read_dir("/boot").context("/boot")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let release = name.strip_prefix("vmlinuz-6.1.0-").and_then(|rest| rest.strip_suffix("-amd64"));
        if let Some(release) = release.and_then(|release| release.parse().ok()) {
            found.push((release, path));
        }
    }
    found.sort();
    found.pop().map(|(_, path)| path).context("no vmlinuz-6.1.0-*-amd64 in /boot")
}

/// Finds virtme-ng's command.
pub fn vng() -> Result<PathBuf> {
    let own = venv().join("bin/vng");
    if own.exists() {
        return Ok(own);
    }
    command::find("vng").ok_or_else(|| anyhow::anyhow!("no vng in PATH or in {}", venv().display()))
}

fn program(name: &str) -> Result<String> {
    match command::find(name) {
        Some(file) => Ok(file.display().to_string()),
        None => bail!("no {name} in PATH"),
    }
}

fn bpf_compiler() -> Result<String> {
    match Toolchain::find() {
        Some(toolchain) => toolchain.check(),
        None => {
            bail!("no compiler with the source of the standard library and an LLVM that bpf-linker reads")
        }
    }
}

fn bpf_clippy() -> Result<String> {
    Toolchain::find().context("no compiler for BPF")?.check_clippy()
}

fn llvm() -> Result<String> {
    // What links against LLVM needs its headers' tool, and the two libraries that LLVM itself links.
    let missing = ["/usr/lib/llvm-22/bin/llvm-config", "/usr/include/zstd.h", "/usr/include/zlib.h"]
        .into_iter()
        .find(|file| !Path::new(file).exists());
    match missing {
        None if command::find("c++").is_none() => bail!("no C++ compiler"),
        None => Ok("/usr/lib/llvm-22".to_owned()),
        Some(file) => bail!("no {file}"),
    }
}

fn bpf_linker() -> Result<String> {
    let Some(file) = command::find("bpf-linker") else { bail!("no bpf-linker in PATH") };
    let said = command::output(command::clean(&file).arg("--version"))?;
    let version = said.split_whitespace().nth(1).unwrap_or_default();
    let minor: u32 = version.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or(0);
    ensure!(minor >= 13, "{} is {version}, older than 0.13", file.display());
    Ok(format!("{} {version}", file.display()))
}

fn bpffs() -> Result<String> {
    let mounted = fs::read_to_string("/proc/self/mounts")?
        .lines()
        .any(|line| line.split(' ').skip(1).take(2).eq(["/sys/fs/bpf", "bpf"]));
    ensure!(mounted, "nothing mounted at /sys/fs/bpf");
    Ok("/sys/fs/bpf".to_owned())
}

fn host_lints() -> Result<String> {
    for tool in ["fmt", "clippy"] {
        command::output(command::cargo().args([tool, "--version"]))?;
    }
    Ok("the stable toolchain's".to_owned())
}

fn kernel() -> Result<String> {
    Ok(reference_kernel()?.display().to_string())
}
