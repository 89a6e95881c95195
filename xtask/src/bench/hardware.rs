//! What decides about speed outside of any director: drivers, queues, interrupts, the processor's clock.
//!
//! Only told, never changed. From sysfs and procfs, so that it needs no tool and looks the same on every machine.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Describes every interface that has a device behind it, and the processor's clock.
pub fn describe() -> String {
    let mut text = String::new();
    let interrupts = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    let mut names: Vec<_> = entries(Path::new("/sys/class/net"));
    names.sort();
    for name in names {
        let directory = Path::new("/sys/class/net").join(&name);
        let device = directory.join("device");
        if !device.exists() {
            continue;
        }
        let driver = fs::read_link(device.join("driver")).ok();
        let driver = driver.as_deref().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let queues = entries(&directory.join("queues"));
        let receive = queues.iter().filter(|queue| queue.starts_with("rx-")).count();
        let speed = fs::read_to_string(directory.join("speed")).unwrap_or_default();
        let _ = writeln!(
            text,
            "{name}: driver {driver}, {receive} receive queues, {} Mbit/s",
            speed
                .trim()
                .parse::<i32>()
                .ok()
                .filter(|speed| *speed > 0)
                .map_or("unknown".into(), |n| n.to_string())
        );
        for (number, what) in irqs(&interrupts, &name, &device) {
            let cpus =
                fs::read_to_string(format!("/proc/irq/{number}/smp_affinity_list")).unwrap_or_default();
            let _ = writeln!(text, "  interrupt {number} ({what}) on CPU {}", cpus.trim());
        }
        for queue in queues.iter().filter(|queue| queue.starts_with("rx-")) {
            let mask = fs::read_to_string(directory.join("queues").join(queue).join("rps_cpus"));
            let mask = mask.unwrap_or_default();
            if mask.trim().chars().any(|digit| !matches!(digit, '0' | ',')) {
                let _ = writeln!(
                    text,
                    "  {queue}: packets are steered to CPUs {} in software (RPS)",
                    mask.trim()
                );
            }
        }
    }
    if text.is_empty() {
        text += "no interface has a device behind it\n";
    }
    let governor = fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    let governor =
        governor.map_or_else(|_| "not the system's to set".to_owned(), |name| name.trim().to_owned());
    text + &format!("processor's clock: {governor}\n")
}

/// The interrupts of an interface: by its name, or by its device's own list.
fn irqs(interrupts: &str, interface: &str, device: &Path) -> Vec<(u32, String)> {
    let own: Vec<u32> =
        entries(&device.join("msi_irqs")).iter().filter_map(|number| number.parse().ok()).collect();
    let mut found = Vec::new();
    for line in interrupts.lines() {
        let Some((number, rest)) = line.trim().split_once(':') else { continue };
        let Ok(number) = number.parse() else { continue };
        let what = rest.split_whitespace().last().unwrap_or_default();
        if own.contains(&number) || what.split(['-', '@']).any(|word| word == interface) {
            found.push((number, what.to_owned()));
        }
    }
    found
}

fn entries(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::irqs;

    #[test]
    fn an_interface_has_the_interrupts_with_its_name() {
        let text = "           CPU0       CPU1
  24:          1          0   PCI-MSI 512-edge      eth0-TxRx-0
  25:          0          1   PCI-MSI 513-edge      eth0-TxRx-1
  26:          0          1   PCI-MSI 513-edge      eth01
 NMI:          0          0   Non-maskable interrupts\n";
        let found = irqs(text, "eth0", Path::new("/nowhere"));
        assert_eq!(found, [(24, "eth0-TxRx-0".to_owned()), (25, "eth0-TxRx-1".to_owned())]);
    }
}
