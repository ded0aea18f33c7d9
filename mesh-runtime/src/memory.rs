//! What a process holds of its own program, and how much of everything it may
//! hold ([`limit`]).

pub mod limit;

use std::{convert::Infallible, fs, io, path::Path, time::Duration};

use rustix::{
    mm::{Advice, madvise},
    time::{ClockId, clock_gettime},
};

/// Takes the pages of the program's code and constants out of the process:
/// after a start most of them are not used again. Those that are come back from
/// the page cache one fault at a time.
///
/// # Errors
///
/// `/proc/self` that cannot be read; the process is as it was.
pub fn release_program() -> io::Result<()> {
    let program = fs::read_link("/proc/self/exe")?;
    for (start, len) in unwritten(&fs::read_to_string("/proc/self/maps")?, &program) {
        // SAFETY: `MADV_DONTNEED` makes a private file mapping read as the
        // file again (madvise(2)). What is named here has never been written
        // to, so that it reads the same before and after, for whoever reads
        // or runs it meanwhile too.
        #[allow(unsafe_code)]
        unsafe {
            madvise(std::ptr::with_exposed_provenance_mut(start), len, Advice::LinuxDontNeed)?;
        }
    }
    Ok(())
}

/// How often it is looked whether the process has become quiet.
const LOOK: Duration = Duration::from_secs(10);
/// Work after which there are pages to give back.
const WORTH: Duration = Duration::from_millis(1);

/// Does [`release_program`] again and again: whenever the process has worked
/// and then done next to nothing for ten seconds. A busy one keeps its pages.
pub(crate) async fn release_when_quiet() -> Infallible {
    let mut released = processor_time();
    let mut before = released;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = processor_time();
        if is_due(released, before, now) {
            if let Err(error) = release_program() {
                log::debug!(error:% = error; "the pages of the program are kept");
            }
            released = now;
        }
        before = now;
    }
}

/// Whether less than half a percent of a core was used since the last look, and
/// something since the last release.
fn is_due(released: Duration, before: Duration, now: Duration) -> bool {
    now.saturating_sub(before) < LOOK / 200 && now.saturating_sub(released) > WORTH
}

/// What this process has used of all processors.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap_or_default()
}

/// Start and length of a program's private mappings that nobody has written to,
/// in the format of `proc_pid_maps(5)`: its code, which has no relocations, and
/// the segment at the beginning of its file. Others that are read-only now may
/// have been relocated before (`PT_GNU_RELRO`).
fn unwritten(maps: &str, program: &Path) -> Vec<(usize, usize)> {
    let mapping = |line: &str| {
        let mut fields = line.splitn(6, ' ').map(str::trim_start);
        let (start, end) = fields.next()?.split_once('-')?;
        let (permissions, offset) = (fields.next()?, fields.next()?);
        let path = Path::new(fields.nth(2)?);
        let start = usize::from_str_radix(start, 16).ok()?;
        let len = usize::from_str_radix(end, 16).ok()?.checked_sub(start)?;
        let first = usize::from_str_radix(offset, 16) == Ok(0);
        let unwritten = permissions == "r-xp" || (permissions == "r--p" && first);
        (unwritten && path == program).then_some((start, len))
    };
    maps.lines().filter_map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_given_back_after_work_and_not_during_it() {
        let ms = Duration::from_millis;
        assert!(is_due(ms(100), ms(150), ms(151)), "work, then rest");
        assert!(!is_due(ms(100), ms(100), ms(151)), "at work");
        assert!(!is_due(ms(100), ms(100), ms(101)), "nothing since the last time");
    }

    #[test]
    fn work_is_seen() {
        let before = processor_time();
        let worked = (0..20_000_000u64).fold(0, |sum, n| std::hint::black_box(sum ^ n));
        std::hint::black_box(worked);
        assert!(processor_time() > before + WORTH);
    }

    #[test]
    fn only_what_nobody_has_written_to_is_named() {
        let maps = "\
55d0a0000000-55d0a0235000 r--p 00000000 fe:00 42                         /usr/bin/edge proxy
55d0a0236000-55d0a0c0b000 r-xp 00235000 fe:00 42                         /usr/bin/edge proxy
55d0a0c0b000-55d0a0c0d000 r--p 00c09000 fe:00 42                         /usr/bin/edge proxy
55d0a0c0d000-55d0a0c3c000 rw-p 00c09000 fe:00 42                         /usr/bin/edge proxy
7f1200000000-7f1200021000 rw-p 00000000 00:00 0
7f1230000000-7f1230156000 r-xp 00028000 fe:00 77                         /usr/lib/libc.so.6
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
nonsense
";
        let found = unwritten(maps, Path::new("/usr/bin/edge proxy"));
        assert_eq!(found, [(0x55d0_a000_0000, 0x23_5000), (0x55d0_a023_6000, 0x9d_5000)]);
    }

    #[test]
    fn the_program_runs_on_without_its_pages() {
        for _ in 0..3 {
            release_program().unwrap();
        }
        let program = fs::read_link("/proc/self/exe").unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!unwritten(&maps, &program).is_empty());
    }
}
