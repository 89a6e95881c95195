//! Debian's nginx on a real server, with its own configuration, page and files.
//!
//! Nothing of the machine's own nginx is read or touched.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Lab, Server};

/// A running nginx; dropping it ends it.
#[derive(Debug)]
pub struct Nginx {
    process: Child,
    root: PathBuf,
}

impl Nginx {
    /// Starts nginx on a real server's ports and waits until it answers. Its page is the server's name.
    pub fn start(lab: &Lab, server: &Server, ports: &[u16]) -> Result<Self> {
        let directory = lab.directory().join(&server.name);
        let root = directory.join("root");
        fs::create_dir_all(&root)?;
        fs::write(root.join("index.html"), format!("{}\n", server.name))?;
        let configuration = directory.join("nginx.conf");
        fs::write(&configuration, text(&directory, ports))?;

        let log = directory.join("error.log");
        let process = server
            .namespace
            .command("nginx")
            .arg("-p")
            .arg(&directory)
            .arg("-e")
            .arg(&log)
            .arg("-c")
            .arg(&configuration)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("nginx")?;
        let mut nginx = Self { process, root };
        for port in ports {
            nginx.wait(server, *port, &log)?;
        }
        Ok(nginx)
    }

    /// Returns the directory whose files it serves.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn wait(&mut self, server: &Server, port: u16, log: &Path) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        while server.namespace.connect(address).is_err() {
            let ended = self.process.try_wait()?.is_some();
            if ended || Instant::now() > deadline {
                let said = fs::read_to_string(log).unwrap_or_default();
                bail!("nginx does not answer on {address} in {}: {}", server.name, said.trim_end());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One process and no master, so that ending it ends all of it.
fn text(directory: &Path, ports: &[u16]) -> String {
    let listen: String = ports.iter().map(|port| format!("        listen {port};\n")).collect();
    let directory = directory.display();
    format!(
        "daemon off;
master_process off;
user root;
pid {directory}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    scgi_temp_path {directory}/scgi;
    uwsgi_temp_path {directory}/uwsgi;
    sendfile on;
    server {{
{listen}        root {directory}/root;
    }}
}}
"
    )
}
