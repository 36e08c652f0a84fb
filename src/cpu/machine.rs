//! What the machine is called, how much memory and how large caches it has, and how many processors the process may use.

use std::sync::OnceLock;

/// The processor's own name, or the architecture's.
pub(super) fn name() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        // Leaves 0x80000002 to 4: 48 bytes of text.
        if __cpuid(0x8000_0000).eax >= 0x8000_0004 {
            let registers = (0x8000_0002..=0x8000_0004).map(__cpuid).flat_map(|r| [r.eax, r.ebx, r.ecx, r.edx]);
            let text: Vec<u8> = registers.flat_map(u32::to_le_bytes).filter(|&b| b != 0).collect();
            let name = String::from_utf8_lossy(&text).trim().to_string();
            if !name.is_empty() {
                return name;
            }
        }
    }
    std::env::consts::ARCH.to_string()
}

/// Bytes of memory, of the cgroup where it has a limit; 0 where unknown.
pub(super) fn memory() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/meminfo");
    let total = info.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let total = total.unwrap_or(0).saturating_mul(1024);
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    limits.iter().filter_map(|p| read(p).trim().parse::<u64>().ok()).fold(total, u64::min)
}

/// Processors that the process may use: its affinity, or its cgroup's quota, a part of one rounded up. (The standard library rounds down;
/// the crate num_cpus rounds up, but does not look at the groups around the process's own.)
pub(super) fn processors() -> usize {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let least = std::thread::available_parallelism().map_or(1, |n| n.get());
    let status = read("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed:")).unwrap_or_default();
    let affinity = mask.chars().filter_map(|c| c.to_digit(16)).map(|d| d.count_ones() as usize).sum::<usize>();
    if affinity <= least {
        return least;
    }
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let quotas = folders(&groups).filter_map(|folder| {
        let two = read(&format!("{folder}/cpu.max")).and_then(|text| quota(&text));
        two.or_else(|| {
            let one = [read(&format!("{folder}/cpu.cfs_quota_us"))?, read(&format!("{folder}/cpu.cfs_period_us"))?];
            quota(&one.join(" "))
        })
    });
    quotas.fold(affinity, usize::min).max(least)
}

/// Where the quotas of a process and of the groups around it are kept, from the text of its `cgroup` file.
fn folders(groups: &str) -> impl Iterator<Item = String> {
    let paths = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            c if c.split(',').any(|c| c == "cpu") => "/sys/fs/cgroup/cpu",
            _ => return None,
        };
        Some((root, path.trim_matches('/').to_string()))
    });
    paths.flat_map(|(root, path)| {
        let mut path = Some(path);
        std::iter::from_fn(move || {
            let this = path.take()?;
            path = (!this.is_empty()).then(|| this.rsplit_once('/').map_or(String::new(), |p| p.0.to_string()));
            Some(format!("{root}/{this}"))
        })
    })
}

/// Microseconds of a period, and the period: `150000 100000` is two processors, rounded up.
fn quota(text: &str) -> Option<usize> {
    let (quota, period) = text.trim().split_once(char::is_whitespace)?;
    let (quota, period): (usize, usize) = (quota.parse().ok()?, period.trim().parse().ok()?);
    (quota > 0 && period > 0).then(|| quota.div_ceil(period))
}

/// Bytes of a core's second cache and of the last one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Caches {
    pub(super) second: usize,
    pub(super) last: usize,
}

/// As the processor says (or the system, where the processor cannot be asked); what is usual where neither does.
pub(super) fn caches() -> Caches {
    static CACHES: OnceLock<Caches> = OnceLock::new();
    *CACHES.get_or_init(|| {
        let mut found = listed();
        found.retain(|&(level, bytes)| (1..=4).contains(&level) && bytes > 0);
        let of = |level: usize| found.iter().find(|c| c.0 == level).map(|c| c.1);
        let second = of(2).unwrap_or(512 << 10).clamp(128 << 10, 64 << 20);
        let last = found.iter().map(|c| c.1).max().unwrap_or(8 << 20).max(second);
        Caches { second, last }
    })
}

/// Level and bytes of each data cache.
#[cfg(target_arch = "x86_64")]
fn listed() -> Vec<(usize, usize)> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    // Intel's leaf, and AMD's of the same form.
    let extended = __cpuid(0x8000_0000).eax;
    let leaf = if extended >= 0x8000_001d && __cpuid_count(0x8000_001d, 0).eax & 31 != 0 { 0x8000_001d } else { 4 };
    if leaf == 4 && __cpuid(0).eax < 4 {
        return Vec::new();
    }
    let caches = (0..16).map(|i| __cpuid_count(leaf, i)).take_while(|r| r.eax & 31 != 0);
    let of = |r: std::arch::x86_64::CpuidResult| {
        let (ways, parts, line) = ((r.ebx >> 22) + 1, (r.ebx >> 12 & 0x3ff) + 1, (r.ebx & 0xfff) + 1);
        let bytes = [ways, parts, line].iter().fold(r.ecx as u64 + 1, |n, &f| n.saturating_mul(f as u64));
        ((r.eax >> 5 & 7) as usize, usize::try_from(bytes).unwrap_or(0))
    };
    caches.filter(|r| r.eax & 31 != 2).map(of).collect()
}

/// Level and bytes of each data cache.
#[cfg(not(target_arch = "x86_64"))]
fn listed() -> Vec<(usize, usize)> {
    let read = |i: usize, what: &str| {
        std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{i}/{what}")).unwrap_or_default()
    };
    let of = |i: usize| {
        let (level, size) = (read(i, "level").trim().parse().ok()?, read(i, "size"));
        let (digits, unit) = size.trim().split_at(size.trim().find(|c: char| !c.is_ascii_digit())?);
        let bytes = digits.parse::<usize>().ok()?.checked_mul(if unit == "M" { 1 << 20 } else { 1 << 10 })?;
        (read(i, "type").trim() != "Instruction").then_some((level, bytes))
    };
    (0..16).filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_plausible() {
        let c = caches();
        println!("{c:?}");
        assert!(c.second >= 128 << 10 && c.last >= c.second && c.last < 1 << 40);
    }

    #[test]
    fn quotas_are_rounded_up() {
        assert_eq!(
            [quota("150000 100000\n"), quota("50000\n 100000"), quota("400000 100000")],
            [Some(2), Some(1), Some(4)]
        );
        assert_eq!([quota("max 100000"), quota("-1 100000"), quota(""), quota("1 0")], [None; 4]);
        let of = |text: &str| folders(text).collect::<Vec<_>>();
        assert_eq!(of("0::/a/b\n"), ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup/"]);
        assert_eq!(of("4:cpu,cpuacct:/x\n5:memory:/y\n"), ["/sys/fs/cgroup/cpu/x", "/sys/fs/cgroup/cpu/"]);
        let n = processors();
        assert!(n >= std::thread::available_parallelism().map_or(1, |n| n.get()) && n <= 1 << 16);
    }
}
