//! What processes cost, from `/proc`.

use std::fs;

/// Clock ticks per second in `/proc/<pid>/stat`: `USER_HZ`, which is 100 on every Linux architecture that we build for.
const TICKS_PER_SECOND: u64 = 100;

/// User plus system time of these processes so far, in microseconds (steps of 10,000). Processes that are gone count
/// as zero, so take both readings of a difference while all of them live.
pub fn cpu_us(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|pid| ticks(*pid)).sum::<u64>() * (1_000_000 / TICKS_PER_SECOND)
}

/// Resident memory of these processes in KiB; pages that several of them share are counted once for each.
pub fn rss_kb(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|pid| status_kb(*pid, "VmRSS:")).sum()
}

/// The most resident memory that each of these processes has had so far, in KiB, summed as by [`rss_kb`]: what was held
/// for a moment only shows here.
pub fn peak_rss_kb(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|pid| status_kb(*pid, "VmHWM:")).sum()
}

/// The live processes of a process group, in no order.
pub fn group_members(group: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            // Field 5 of stat(5); a zombie still shows its group, so its state (field 3) is looked at, too.
            stat_fields(*pid).is_some_and(|fields| {
                let state = fields.first().map(String::as_str);
                let member = fields.get(2).and_then(|text| text.parse::<u32>().ok()) == Some(group);
                member && state != Some("Z")
            })
        })
        .collect()
}

fn ticks(pid: u32) -> Option<u64> {
    let fields = stat_fields(pid)?;
    let user: u64 = fields.get(11)?.parse().ok()?;
    let system: u64 = fields.get(12)?.parse().ok()?;
    Some(user + system)
}

/// The fields of `/proc/<pid>/stat` after the program's name, which may itself hold spaces and parentheses: the state
/// comes first, so that field N of stat(5) is at N - 3.
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_ascii_whitespace().map(str::to_owned).collect())
}

/// A line of `/proc/<pid>/status` that is in KiB.
fn status_kb(pid: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[test]
    fn this_process_uses_memory_and_time() {
        let me = [std::process::id()];
        assert!(rss_kb(&me) > 100);
        assert!(peak_rss_kb(&me) > 100);
        let before = cpu_us(&me);
        let mut sum = 0u64;
        while cpu_us(&me) < before + 20_000 {
            sum = black_box(sum.wrapping_add(1));
        }
        assert!(cpu_us(&me) > before);
    }

    #[test]
    fn processes_that_are_gone_count_as_nothing() {
        assert_eq!(cpu_us(&[u32::MAX]), 0);
        assert_eq!(rss_kb(&[u32::MAX]), 0);
        assert!(group_members(u32::MAX).is_empty());
    }
}
