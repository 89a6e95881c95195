//! `xipvs drain`: takes a destination out of service by a deadline, and lists those that are on their way out.

use std::io::Write;

use anyhow::{Result, anyhow};
use clap::{ArgGroup, Args};
use xipvs::cli;
use xipvs::cli::names::SystemNames;
use xipvs::director::Director;
use xipvs::director::xdp::Xdp;

/// Longest time that a drain may take: 31 days, in seconds.
const LONGEST: i64 = 31 * 24 * 60 * 60;

/// The destination, in ipvsadm's words, and how long its connections may go on.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("service").args(["tcp_service", "udp_service", "sctp_service", "fwmark_service"]))]
pub struct Drain {
    /// The TCP service.
    #[arg(short, long, value_name = "SERVICE", requires = "real_server")]
    tcp_service: Option<String>,
    /// The UDP service.
    #[arg(short, long, value_name = "SERVICE", requires = "real_server")]
    udp_service: Option<String>,
    /// The SCTP service.
    #[arg(long, value_name = "SERVICE", requires = "real_server")]
    sctp_service: Option<String>,
    /// The service of packets with this firewall mark.
    #[arg(short, long, value_name = "MARK", requires = "real_server")]
    fwmark_service: Option<String>,
    /// The mark's IPv6 packets.
    #[arg(short = '6', long, requires = "fwmark_service")]
    ipv6: bool,
    /// The real server.
    #[arg(short, long, value_name = "SERVER", requires_all = ["service", "within"])]
    real_server: Option<String>,
    /// Seconds until its connections end.
    #[arg(long, value_name = "SECONDS", requires = "real_server", value_parser = clap::value_parser!(u32).range(0..=LONGEST))]
    within: Option<u32>,
}

impl Drain {
    /// The words by which ipvsadm names the destination.
    fn words(&self) -> Vec<&str> {
        let services = [
            ("-t", &self.tcp_service),
            ("-u", &self.udp_service),
            ("--sctp-service", &self.sctp_service),
            ("-f", &self.fwmark_service),
        ];
        let options = services.into_iter().filter_map(|(name, value)| Some([name, value.as_deref()?]));
        let mut words: Vec<&str> = options.flatten().collect();
        words.extend(self.ipv6.then_some("-6"));
        words.extend(self.real_server.iter().flat_map(|server| ["-r", server]));
        words
    }
}

/// Begins a drain, or lists those that are in progress.
pub fn carry_out(drain: &Drain, director: &mut Xdp, to: &mut dyn Write) -> Result<()> {
    let Some(seconds) = drain.within else { return list(director, to) };
    let named = cli::destination_named(&drain.words(), &SystemNames::default());
    let (service, destination) = named.map_err(|text| anyhow!("{text}"))?;
    Ok(director.drain(&service, &destination, seconds)?)
}

/// Writes a line for each destination that drains.
pub fn list(director: &mut Xdp, to: &mut dyn Write) -> Result<()> {
    for entry in director.table()?.entries {
        let service = entry.service.service.key;
        for report in entry.destinations {
            let Some(left) = report.drains_in else { continue };
            let connections = u64::from(report.active) + u64::from(report.inactive);
            let when = if left == 0 { "over".into() } else { format!("{left} s left") };
            writeln!(to, "{service} -r {}  {when}, {connections} connections", report.destination.key)?;
        }
    }
    Ok(())
}
