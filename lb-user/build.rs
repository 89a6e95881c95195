//! Puts the BPF object where `src/object.rs` includes it, or an empty file where there is none yet.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-env-changed=XIPVS_BPF_OBJECT");
    let object = match env::var_os("XIPVS_BPF_OBJECT") {
        Some(named) => PathBuf::from(named),
        None => built_object(),
    };
    println!("cargo:rerun-if-changed={}", object.display());
    let bytes = fs::read(&object)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", object.display())))?;
    fs::write(Path::new(&variable("OUT_DIR")).join("xipvs.bpf.o"), bytes)
}

/// Returns the place where `cargo xtask build` puts the object.
///
/// cargo takes a watched file that is missing for one that has always just changed and would compile this crate
/// anew each time. So that a tree without the BPF toolchain builds quickly too, the place is held by an empty file,
/// dated before anything that cargo compares it with.
fn built_object() -> PathBuf {
    let target = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../target");
    let object = target.join("xipvs.bpf.o");
    let held = fs::create_dir_all(&target)
        .and_then(|()| fs::File::create_new(&object))
        .and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1)));
    match held {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => println!("cargo:warning={}: {error}", object.display()),
    }
    object
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo sets {name}: {error}"))
}
