//! Debian's nginx on a real server, with its own configuration, page and files.
//!
//! Nothing of the machine's own nginx is read or touched.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::program::Program;
use super::{Lab, Server};

/// A running nginx; dropping it ends it.
#[derive(Debug)]
pub struct Nginx {
    _program: Program,
    root: PathBuf,
}

impl Nginx {
    /// Starts nginx on a real server's ports, of both families, and waits until it answers.
    ///
    /// Its page is the server's name, and what is PUT is a file below [`Nginx::root`] then.
    pub fn start(lab: &Lab, server: &Server, ports: &[u16]) -> Result<Self> {
        let directory = lab.directory().join(&server.name);
        let root = directory.join("root");
        fs::create_dir_all(&root)?;
        fs::write(root.join("index.html"), format!("{}\n", server.name))?;
        let configuration = directory.join("nginx.conf");
        fs::write(&configuration, text(&directory, ports))?;

        let mut command = server.namespace.command("nginx");
        command.arg("-p").arg(&directory).args(["-e", "stderr", "-c"]).arg(&configuration);
        let answers =
            |port: &u16| server.namespace.connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, *port)).is_ok();
        let program = Program::start(command, &directory.join("log"), || ports.iter().all(answers))?;
        Ok(Self { _program: program, root })
    }

    /// Returns the directory whose files it serves.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

/// One process and no master, so that ending it ends all of it.
fn text(directory: &Path, ports: &[u16]) -> String {
    let listen: String =
        ports.iter().map(|port| format!("        listen [::]:{port} ipv6only=off;\n")).collect();
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
    client_max_body_size 0;
    server {{
{listen}        root {directory}/root;
        dav_methods PUT;
    }}
}}
"
    )
}
