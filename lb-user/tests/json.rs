//! The example of `docs/json.md` is what the program prints.

use std::ffi::OsString;
use std::path::Path;

use serde_json::Value;
use xipvs::cli::names::FileNames;
use xipvs::cli::{Streams, run};
use xipvs::director::memory::Memory;
use xipvs::table::ConnectionReport;

const RULES: &str = "\
-A -t 192.0.2.1:80 -s sh -b sh-port -p 360 -M 255.255.255.0
-a -t 192.0.2.1:80 -r 10.0.0.2:8080 -m -w 2
-a -t 192.0.2.1:80 -r 10.0.0.3:80 -i --tun-type gue --tun-port 6080 -x 100 -y 50
-A -f 7 -6
";

fn print(memory: &mut Memory, stdin: &str, words: &[&str]) -> (u8, String) {
    let argv: Vec<OsString> = words.iter().map(OsString::from).collect();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut streams = Streams { stdin: &mut stdin.as_bytes(), stdout: &mut stdout, stderr: &mut stderr };
    let status = run(&argv, &mut streams, memory, &FileNames::default());
    (status, String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
}

#[test]
fn the_documented_examples_are_what_is_printed() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mut examples = page.split("```json\n").skip(1).map(|rest| {
        let (example, _) = rest.split_once("```").unwrap();
        serde_json::from_str::<Value>(example).unwrap()
    });
    let mut memory = Memory::default();
    memory.connections.push(ConnectionReport {
        protocol: "TCP".into(),
        client: "198.51.100.7".parse().unwrap(),
        client_port: 40012,
        virtual_address: "192.0.2.1".parse().unwrap(),
        virtual_port: 80,
        destination: "10.0.0.2".parse().unwrap(),
        destination_port: 8080,
        state: "ESTABLISHED".into(),
        expires: 898,
        engine: None,
    });
    print(&mut memory, RULES, &["xipvs", "-R"]);
    print(&mut memory, "", &["xipvs", "--start-daemon", "master", "--mcast-interface", "lo"]);
    for listing in [
        &["xipvs", "-L", "--json"][..],
        &["xipvs", "-L", "-c", "--json"],
        &["xipvs", "-L", "--timeout", "--json"],
        &["xipvs", "-L", "--daemon", "--json"],
    ] {
        let (status, text) = print(&mut memory, "", listing);
        assert_eq!(status, 0, "{text}");
        let printed: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(Some(&printed), examples.next().as_ref(), "{listing:?} prints\n{text}");
    }
}

#[test]
fn ipvsadm_knows_no_json() {
    let (status, text) = print(&mut Memory::default(), "", &["ipvsadm", "-L", "--json"]);
    assert_eq!((status, text.as_str()), (255, "--json: unknown option\n"));
}
