//! What the machine is called and how much memory it has.

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
