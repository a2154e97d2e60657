//! Crashes at every writing call, with every kind of loss, many seeds each.

use super::sim::SimDisk;
use super::*;

const SEEDS: u64 = 40;

/// What the workload was told is durable, and what it was about to add when the disk died.
#[derive(Debug, Default, Clone)]
struct Known {
    acknowledged: Vec<Vec<u8>>,
    in_flight: Option<InFlight>,
}

#[derive(Debug, Clone)]
enum InFlight {
    Append(Vec<u8>),
    Rewrite(Vec<Vec<u8>>),
}

impl Known {
    fn allows(&self, found: &[Vec<u8>]) -> bool {
        if found == self.acknowledged {
            return true;
        }
        match &self.in_flight {
            None => false,
            Some(InFlight::Append(entry)) => {
                found.len() == self.acknowledged.len() + 1
                    && found.starts_with(&self.acknowledged)
                    && found.last() == Some(entry)
            }
            Some(InFlight::Rewrite(entries)) => found == entries,
        }
    }
}

/// Appends entries of many lengths and rewrites now and then, until done or the disk dies.
fn workload(disk: &SimDisk, known: &mut Known, rounds: usize) -> Result<(), JournalError> {
    let (mut journal, found) = Journal::open(disk.clone())?;
    assert!(known.allows(&found), "{known:?} but found {found:?}");
    known.acknowledged = found;
    known.in_flight = None;
    for round in 0..rounds {
        let number = known.acknowledged.len();
        let entry = format!("{number}:{}", "x".repeat(number * 7 % 41)).into_bytes();
        known.in_flight = Some(InFlight::Append(entry.clone()));
        journal.append(&entry)?;
        known.acknowledged.push(entry);
        if round % 4 == 3 {
            let kept = known.acknowledged[known.acknowledged.len() / 2..].to_vec();
            known.in_flight = Some(InFlight::Rewrite(kept.clone()));
            journal.rewrite(&kept)?;
            known.acknowledged = kept;
        }
        known.in_flight = None;
    }
    Ok(())
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_every_call_twice() {
    let whole = SimDisk::default();
    workload(&whole, &mut Known::default(), 10).unwrap();
    for call in 1..=whole.calls() {
        for seed in 0..SEEDS {
            let disk = SimDisk::default();
            disk.crash_at(call);
            let mut known = Known::default();
            assert!(workload(&disk, &mut known, 10).is_err());
            // Again, now crashing early in the recovery and the work after it.
            for again in 1..=6 {
                let mut known = known.clone();
                let disk = disk.after_power_cut(seed);
                disk.crash_at(again);
                let _ = workload(&disk, &mut known, 3);
                let disk = disk.after_power_cut(seed + again as u64);
                workload(&disk, &mut known, 3).unwrap();
            }
        }
    }
}

#[test]
fn the_simulated_disk_does_lose_what_was_not_synced() {
    // Guards the test above: were the disk lossless, it could not fail.
    let outcomes: std::collections::BTreeSet<Vec<u8>> = (0..200)
        .map(|seed| {
            let disk = SimDisk::default();
            let mut file = disk.create("f").unwrap();
            disk.sync_dir().unwrap();
            file.write_at(0, b"0123456789abcdefghijklmn").unwrap();
            let mut file = disk.after_power_cut(seed).open("f").unwrap().unwrap();
            file.read_all(100).unwrap()
        })
        .collect();
    assert!(outcomes.contains(&b""[..]), "never dropped");
    assert!(outcomes.contains(&b"0123456789abcdefghijklmn"[..]));
    assert!(outcomes.contains(&b"01234567\0\0\0\0\0\0\0\0ghijklmn"[..]));
    let name_lost = (0..50).any(|seed| {
        let disk = SimDisk::default();
        disk.create("f").unwrap();
        disk.after_power_cut(seed).open("f").unwrap().is_none()
    });
    assert!(name_lost);
}

fn file_with(bytes: &[u8]) -> SimDisk {
    let disk = SimDisk::default();
    disk.create(FILE).unwrap().write_at(0, bytes).unwrap();
    disk
}

fn three_entries() -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for sequence in 1..=3 {
        bytes.extend(frame::encode(
            sequence,
            format!("entry {sequence}").as_bytes(),
        ));
    }
    bytes
}

#[test]
fn every_flipped_byte_is_noticed() {
    let bytes = three_entries();
    let whole: Vec<Vec<u8>> = (1..=3).map(|n| format!("entry {n}").into_bytes()).collect();
    let last = bytes.len() - frame::HEADER_BYTES - b"entry 3".len();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x41;
        match Journal::open(file_with(&damaged)) {
            Err(JournalError::Format { .. }) => assert!(at < MAGIC.len()),
            Err(JournalError::Corrupt { .. }) => assert!(at >= MAGIC.len() && at < last),
            // Damage of the last entry looks like a torn tail and is cut.
            Ok((_, found)) => {
                assert!(at >= last, "byte {at}");
                assert_eq!(found, whole[..2]);
            }
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
}

#[test]
fn every_shortened_file_reads_as_a_prefix_and_can_be_appended_to() {
    let bytes = three_entries();
    for length in MAGIC.len()..bytes.len() {
        let disk = file_with(&bytes[..length]);
        let (mut journal, found) = Journal::open(disk.clone()).unwrap();
        assert!(found.len() < 3);
        journal.append(b"after").unwrap();
        let (_, again) = Journal::open(disk).unwrap();
        assert_eq!(again.len(), found.len() + 1);
        assert_eq!(again.last().unwrap(), b"after");
    }
}

#[test]
fn a_disk_that_fails_for_a_while_loses_nothing_acknowledged() {
    // Fails at one call, then works again; then power is cut.
    for failing in 1..=12 {
        for seed in 0..SEEDS {
            let disk = SimDisk::default();
            let (mut journal, _) = Journal::open(disk.clone()).unwrap();
            journal.append(b"first").unwrap();
            disk.fail_once_at(disk.calls() + failing);
            let mut acknowledged = vec![b"first".to_vec()];
            for n in 0..6 {
                let entry = format!("entry {n}").into_bytes();
                if n == 3 && journal.rewrite(&acknowledged).is_err() {
                    continue;
                }
                match journal.append(&entry) {
                    Ok(()) => acknowledged.push(entry),
                    Err(JournalError::Storage { .. } | JournalError::Poisoned { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            assert!(acknowledged.len() > 3, "stays broken for too long");
            let (_, found) = Journal::open(disk.after_power_cut(seed)).unwrap();
            // An entry whose append failed may be there if it is the last.
            assert!(
                found.starts_with(&acknowledged),
                "{failing} {seed}: {found:?}"
            );
            assert!(found.len() <= acknowledged.len() + 1);
        }
    }
}

#[test]
fn after_a_rewrite_that_failed_at_the_renaming_nothing_is_appended() {
    let disk = SimDisk::default();
    let (mut journal, _) = Journal::open(disk.clone()).unwrap();
    // Create, write, sync, rename, sync of the directory.
    disk.fail_once_at(disk.calls() + 5);
    assert!(matches!(
        journal.rewrite(&[b"a".to_vec()]),
        Err(JournalError::Storage { .. })
    ));
    assert!(matches!(
        journal.append(b"b"),
        Err(JournalError::Poisoned { .. })
    ));
}

#[test]
fn entries_have_a_length() {
    let (mut journal, _) = Journal::open(SimDisk::default()).unwrap();
    for bytes in [0, ENTRY_BYTES_MAX + 1] {
        let refused = journal.append(&vec![1; bytes]);
        assert!(matches!(refused, Err(JournalError::EntryLength { .. })));
    }
    journal.append(&vec![1; ENTRY_BYTES_MAX]).unwrap();
}

#[test]
fn a_real_directory_keeps_entries_and_lets_one_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    {
        let (mut journal, _) = Journal::open(DirStorage::open(&path).unwrap()).unwrap();
        journal.append(b"one").unwrap();
        journal.rewrite(&[b"two".to_vec()]).unwrap();
        journal.append(b"three").unwrap();
        let busy = DirStorage::open(&path).unwrap_err();
        assert_eq!(busy.kind(), std::io::ErrorKind::ResourceBusy);
    }
    let (_, found) = Journal::open(DirStorage::open(&path).unwrap()).unwrap();
    assert_eq!(found, [b"two".to_vec(), b"three".to_vec()]);
}
