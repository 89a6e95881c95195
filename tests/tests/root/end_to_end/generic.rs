//! Generic mode, in which the program sees what the stack has put together of several packets.

use anyhow::Result;
use tests::lab::Lab;

use super::traffic::{Serving, use_all};

#[test]
fn generic_mode_does_what_native_mode_does() -> Result<()> {
    let lab = Lab::new("slow", 1)?;
    let _serving = Serving::start(&lab.servers[0])?;
    lab.director.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    lab.xipvs("attach --generic clients servers")?;
    use_all(&lab)
}
