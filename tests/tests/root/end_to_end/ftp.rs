//! vsftpd and curl: FTP's second connection finds the server of the first by persistence, and what NAT lacks without
//! a helper.

use std::fs;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use tests::lab::program::Program;
use tests::lab::{Lab, Server, VIP, VIP_IPV6};

const LARGE: usize = 1_000_000;

/// Starts vsftpd for whoever comes, listening as these lines of its configuration say.
fn serve(lab: &Lab, server: &Server, listen: &str) -> Result<Program> {
    let directory = lab.directory().join(format!("ftp-{}", server.name));
    fs::create_dir(&directory)?;
    let root = directory.join("root");
    fs::create_dir(&root)?;
    fs::write(root.join("name"), format!("{}\n", server.name))?;
    fs::write(root.join("large"), vec![b'x'; LARGE])?;
    let empty = directory.join("empty");
    fs::create_dir(&empty)?;
    let configuration = directory.join("vsftpd.conf");
    let text = format!(
        "background=NO\nrun_as_launching_user=YES\nseccomp_sandbox=NO\n\
         anonymous_enable=YES\nno_anon_password=YES\nanon_root={}\nsecure_chroot_dir={}\n{listen}\n",
        root.display(),
        empty.display()
    );
    fs::write(&configuration, text)?;
    let mut command = server.namespace.command("vsftpd");
    command.arg(&configuration);
    Program::start(command, &directory.join("log"), || {
        server.namespace.connect((std::net::Ipv4Addr::LOCALHOST, 21)).is_ok()
    })
}

/// Fetches a file.
fn curl(lab: &Lab, options: &str, url: &str) -> Result<Output> {
    let mut curl = lab.client.command("curl");
    curl.args(["--silent", "--show-error", "--globoff", "--max-time", "5"]).args(options.split_whitespace());
    curl.arg(url).output().context("curl")
}

/// Fetches both files some times; they come from one server, and by it alone.
fn fetch(lab: &Lab, options: &str, vip: &str) -> Result<()> {
    let mut names = Vec::new();
    for _ in 0..3 {
        for file in ["name", "large"] {
            let output = curl(lab, options, &format!("ftp://{vip}/{file}"))?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{vip} {options:?} {file}: {}", said.trim_end());
            match file {
                "name" => names.push(output.stdout),
                _ => ensure!(output.stdout == vec![b'x'; LARGE], "{vip} {options:?}: other bytes"),
            }
        }
    }
    ensure!(names.iter().all(|name| *name == names[0]), "{vip} {options:?}: several servers answered");
    Ok(())
}

#[test]
fn files_come_by_direct_routing() -> Result<()> {
    let lab = Lab::new("ftp", 2)?;
    let _servers: Vec<_> =
        lab.servers.iter().map(|server| serve(&lab, server, "listen_ipv6=YES")).collect::<Result<_>>()?;
    lab.attach()?;
    lab.xipvs(&format!("-A -t {VIP}:21 -s rr -p 300"))?;
    lab.xipvs(&format!("-A -t [{VIP_IPV6}]:21 -s rr -p 300"))?;
    for server in &lab.servers {
        lab.xipvs(&format!("-a -t {VIP}:21 -r {} -g", server.address))?;
        lab.xipvs(&format!("-a -t [{VIP_IPV6}]:21 -r [{}]:21 -g", server.address_ipv6))?;
    }
    // The server opens a port and tells it, without its address or with it.
    fetch(&lab, "", &VIP.to_string())?;
    fetch(&lab, "--disable-epsv --no-ftp-skip-pasv-ip", &VIP.to_string())?;
    fetch(&lab, "", &format!("[{VIP_IPV6}]"))?;
    // The client opens one, and the server comes to it from its port 20.
    fetch(&lab, "--ftp-port -", &VIP.to_string())
}

#[test]
fn by_nat_a_server_has_to_be_told_its_outside_address() -> Result<()> {
    let lab = Lab::new("ftp-nat", 2)?;
    let _told = serve(&lab, &lab.servers[0], &format!("listen=YES\npasv_address={VIP}"))?;
    let _other = serve(&lab, &lab.servers[1], "listen=YES")?;
    // Its own address is not to be reached but by way of the director.
    lab.client.ip(&["link set servers down"])?;
    lab.attach()?;
    lab.xipvs(&format!("-A -t {VIP}:21 -s rr -p 300"))?;
    let server = |index: usize| format!("-t {VIP}:21 -r {}:21", lab.servers[index].address);
    lab.xipvs(&format!("-a {} -m", server(0)))?;
    let by_address = "--disable-epsv --no-ftp-skip-pasv-ip";
    fetch(&lab, by_address, &VIP.to_string())?;
    fetch(&lab, "", &VIP.to_string())?;
    // Without a helper nobody replaces the address that the other one tells.
    lab.xipvs(&format!("-d {}", server(0)))?;
    lab.xipvs("set expire_quiescent_template=1")?;
    lab.xipvs(&format!("-a {} -m", server(1)))?;
    fetch(&lab, "", &VIP.to_string())?;
    let output = curl(&lab, by_address, &format!("ftp://{VIP}/name"))?;
    ensure!(!output.status.success(), "something translates what is said in the control connection");
    Ok(())
}
