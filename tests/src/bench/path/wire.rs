//! The ends of the whole path: a generator on the client's wire, a sink on the servers'.
//!
//! The kernel runs our generating program on frames that it then really sends (`BPF_F_TEST_XDP_LIVE_FRAMES`); on a veth they
//! come in at the other end in the driver's poll, on the same CPU, within the generator's system call. So what the
//! generator's thread takes of the CPU is all that the packets cost: sending, the director, and the sink.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, PerCpuArray};
use aya::programs::xdp::XdpLinkId;
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use crate::bench::feeder::line_up;
use crate::bench::frame::{Frame, bytes};
use crate::bench::topology::{CLIENT, SINK, UPLINK_INDEX};
use crate::lab::namespace::enter_namespace;

/// Most frames that take turns.
const FRAMES: u32 = 1 << 16;
/// Frames that are sent at once; a veth has room for 256.
const BATCH: u32 = 64;
/// How long the sink may take to get another packet before the rest is given up.
const PATIENCE: Duration = Duration::from_millis(500);

/// One of our programs, loaded in an object of its own.
pub struct Loaded {
    ebpf: Ebpf,
    name: &'static str,
    link: Option<XdpLinkId>,
}

impl Loaded {
    /// Loads a program from the yardsticks' object file; what it redirects goes to this interface.
    pub fn new(object: &Path, name: &'static str, out: u32) -> Result<Self> {
        let object = fs::read(object).with_context(|| object.display().to_string())?;
        let mut loader = EbpfLoader::new();
        loader.btf(None).map_max_entries("FRAMES", FRAMES);
        // Nobody asks for these.
        for map in ["FLOWS", "LINES"] {
            loader.map_max_entries(map, 1);
        }
        let mut ebpf = loader.load(&object)?;
        let program: &mut Xdp = ebpf.program_mut(name).context("no such program")?.try_into()?;
        program.load()?;
        let map = ebpf.map_mut("OUT").context("no map OUT")?;
        Array::<_, u32>::try_from(map)?.set(0, out, 0)?;
        Ok(Self { ebpf, name, link: None })
    }

    /// Attaches it, natively, to an interface of the caller's namespace until [`Loaded::detach`] or the end.
    pub fn attach(&mut self, interface: u32) -> Result<()> {
        let program = self.program()?;
        let link = program.attach_to_if_index(interface, XdpMode::Driver).context("attaching")?;
        self.link = Some(link);
        Ok(())
    }

    /// Takes it off again.
    pub fn detach(&mut self) -> Result<()> {
        let link = self.link.take().context("not attached")?;
        Ok(self.program()?.detach(link)?)
    }

    fn program(&mut self) -> Result<&mut Xdp> {
        Ok(self.ebpf.program_mut(self.name).context("no such program")?.try_into()?)
    }

    /// Packets that a sink has taken.
    pub fn taken(&self) -> Result<u64> {
        let map: PerCpuArray<_, u64> = self.ebpf.map("TAKEN").context("no map TAKEN")?.try_into()?;
        Ok(map.get(&0, 0)?.iter().sum())
    }
}

/// What sending packets took.
#[derive(Debug, Clone, Copy)]
pub struct Passage {
    /// How many arrived.
    pub arrived: u64,
    /// From the first packet to the last that arrived.
    pub elapsed: Duration,
    /// Of the CPU, in all.
    pub cpu: Duration,
}

/// The generator, and the sink where packets usually end.
pub struct Wire {
    generator: Loaded,
    sink: Loaded,
    softirq: Option<Pid>,
    clock: Option<ClockId>,
}

impl Wire {
    /// Makes both ends ready.
    pub fn new(object: &Path) -> Result<Self> {
        let generator = Loaded::new(object, "generate", UPLINK_INDEX)?;
        let mut sink = Loaded::new(object, "sink", 0)?;
        enter_namespace(SINK, || sink.attach(UPLINK_INDEX))??;
        let softirq = softirq_thread()?;
        let clock = softirq.map(clock_getcpuclockid).transpose()?;
        Ok(Self { generator, sink, softirq, clock })
    }

    /// Has the thread that takes over interrupts' work get the CPU as soon as it wants it.
    ///
    /// While it waits for its turn the generator goes on, and fills up what it sends through. Where all that is counted are
    /// instructions the machine is nobody else's, and no packet may be lost.
    pub fn put_softirq_first(&self) -> Result<()> {
        let Some(thread) = self.softirq else { return Ok(()) };
        let status = Command::new("chrt").args(["--fifo", "--pid", "1", &thread.to_string()]).status();
        ensure!(status.context("chrt")?.success(), "chrt failed");
        Ok(())
    }

    /// Sends so many packets, frame after frame, and waits until they are in the sink.
    pub fn send(&mut self, frames: &[Frame], packets: u32) -> Result<Passage> {
        self.send_to(frames, packets, None)
    }

    /// Sends to another sink than the usual one.
    pub fn send_to(&mut self, frames: &[Frame], packets: u32, sink: Option<&Loaded>) -> Result<Passage> {
        line_up(&mut self.generator.ebpf, frames)?;
        let program: &Xdp = self.generator.ebpf.program("generate").context("no generator")?.try_into()?;
        let (sink, softirq) = (sink.unwrap_or(&self.sink), self.clock);
        enter_namespace(CLIENT, || {
            let before = sink.taken()?;
            let (start, busy) = (Instant::now(), consumed(softirq)?);
            let mut options = TestRunOptions::new();
            options.data_in = Some(bytes(&frames[0]));
            options.repeat = packets;
            options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
            program.test_run(options).context("sending packets")?;
            let mut passage = Passage { arrived: 0, elapsed: Duration::ZERO, cpu: Duration::ZERO };
            let mut last = Instant::now();
            while passage.arrived < packets.into() && last.elapsed() < PATIENCE {
                let arrived = sink.taken()? - before;
                if arrived > passage.arrived {
                    last = Instant::now();
                    passage = Passage { arrived, elapsed: last - start, cpu: consumed(softirq)? - busy };
                } else {
                    std::thread::yield_now();
                }
            }
            Ok(passage)
        })?
    }
}

/// CPU time of this thread and of the one that takes over interrupts' work when there is too much of it.
fn consumed(softirq: Option<ClockId>) -> Result<Duration> {
    let own = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?);
    let other = softirq.map(clock_gettime).transpose()?;
    Ok(own + other.map_or(Duration::ZERO, Duration::from))
}

/// `ksoftirqd` of the CPU that this thread is bound to.
fn softirq_thread() -> Result<Option<Pid>> {
    let name = format!("ksoftirqd/{}", nix::sched::sched_getcpu()?);
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.trim() == name {
            return Ok(Some(Pid::from_raw(pid)));
        }
    }
    Ok(None)
}
