//! What `cargo xtask install` puts in place works from there, under each of its names.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Result, ensure};
use tests::lab::{Lab, binary};

/// Runs `cargo xtask install` with the binary of `cargo xtask build`, into a directory.
fn install(root: &Path) -> Result<Output> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["xtask", "install", "--root"]).arg(root);
    Ok(cargo.arg("--binary").arg(binary()).stdin(Stdio::null()).output()?)
}

#[test]
fn the_installed_programs_work_under_each_name() -> Result<()> {
    let lab = Lab::new("installed", 1)?;
    let root = lab.directory().join("root");
    // The second time it is installed over itself.
    for _ in 0..2 {
        let output = install(&root)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let programs = root.join("usr/local/sbin");
    let run = |name: &str, words: &[&str], input: &str| -> Result<Output> {
        let rules = lab.directory().join("input");
        fs::write(&rules, input)?;
        let program = programs.join(name);
        let mut command = lab.director.command(&program.display().to_string());
        Ok(command.args(words).stdin(fs::File::open(&rules)?).output()?)
    };
    let prints = |name: &str, words: &[&str], input: &str| -> Result<String> {
        let output = run(name, words, input)?;
        ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let rules = "-A -t 192.168.1.100:80 -s rr\n-a -t 192.168.1.100:80 -r 10.0.0.11:80 -m -w 1\n";
    assert_eq!(prints("ipvsadm-restore", &[], rules)?, "");
    assert_eq!(prints("ipvsadm-save", &["-n"], "")?, rules);
    assert_eq!(prints("ipvsadm", &["-Sn"], "")?, rules);
    assert!(prints("xipvs", &["-Ln", "--json"], "")?.contains("\"192.168.1.100\""));
    assert_eq!(run("ipvsadm", &["-Ln", "--json"], "")?.status.code(), Some(255));

    for page in ["xipvs", "ipvsadm", "ipvsadm-save", "ipvsadm-restore"] {
        let text = fs::read_to_string(root.join(format!("usr/local/share/man/man8/{page}.8")))?;
        assert!(text.starts_with(".TH ") || text == ".so man8/ipvsadm.8\n", "{page}");
    }
    for program in ["xipvs", "ipvsadm"] {
        let completion = root.join("usr/local/share/bash-completion/completions").join(program);
        let line = format!("source {} && complete -p {program}", completion.display());
        let output = Command::new("bash").args(["-c", &line]).output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[test]
fn another_ipvsadm_is_left_alone() -> Result<()> {
    let lab = Lab::new("installed", 0)?;
    let programs = lab.directory().join("usr/local/sbin");
    fs::create_dir_all(&programs)?;
    fs::write(programs.join("ipvsadm"), "the real one")?;
    let output = install(lab.directory())?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("is another program's"), "{said}");
    assert_eq!(fs::read_to_string(programs.join("ipvsadm"))?, "the real one");
    assert!(!programs.join("xipvs").exists());
    Ok(())
}
