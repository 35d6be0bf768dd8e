use proptest::prelude::*;
use tempfile::{TempDir, tempdir};
use uuid::Uuid;

use super::*;

const SMALL: Limits = Limits { segment: 2000, total: 1 << 30, age: Duration::from_secs(3600) };

fn open(dir: &TempDir, limits: Limits) -> OutputLog {
    OutputLog::open(dir.path(), limits).unwrap()
}

fn attempt(task: u128, attempt: u32) -> TaskRef {
    TaskRef { task: TaskId::from_uuid(Uuid::from_u128(task)), attempt }
}

fn record(task: TaskRef, channel: Channel, offset: u64, data: &str) -> OutputRecord {
    OutputRecord { task, channel, offset, data: Bytes::copy_from_slice(data.as_bytes()) }
}

fn all_of(task: TaskRef) -> Wanted {
    Wanted { task: task.task, attempt: None, channel: None }
}

/// Everything of that, page by page.
fn read(log: &OutputLog, wanted: Wanted, page: usize) -> Vec<Piece> {
    let (mut pieces, mut after) = (Vec::new(), Position::default());
    loop {
        let page = log.read(wanted, after, page).unwrap();
        pieces.extend(page.pieces);
        if page.end {
            return pieces;
        }
        assert!(page.next > after);
        after = page.next;
    }
}

fn text(pieces: &[Piece]) -> String {
    pieces.iter().map(|piece| String::from_utf8_lossy(&piece.data).into_owned()).collect()
}

fn file_names(dir: &TempDir) -> Vec<String> {
    let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Fills a log whose segments are small with numbered lines of one attempt.
fn fill(log: &OutputLog, task: TaskRef, lines: u64) {
    for line in 0..lines {
        log.append(&[record(task, Channel::Stdout, line * 100, &format!("{line:>99}\n"))]).unwrap();
    }
}

#[test]
fn what_is_known_is_not_stored_again_and_a_jump_stays_one() {
    let dir = tempdir().unwrap();
    let log = open(&dir, Limits::default());
    let task = attempt(1, 1);
    log.append(&[record(task, Channel::Stdout, 0, "abc"), record(task, Channel::Stdout, 3, "def")]).unwrap();
    log.append(&[record(task, Channel::Stdout, 0, "abcde"), record(task, Channel::Stdout, 4, "efgh")]).unwrap();
    log.append(&[record(task, Channel::Stdout, 100, "end"), record(task, Channel::Stderr, 0, "oops")]).unwrap();
    log.append(&[record(task, Channel::Stdin, 0, "nothing that it wrote"), record(task, Channel::Stderr, 4, "")])
        .unwrap();
    let pieces = read(&log, all_of(task), 4);
    let told: Vec<_> =
        pieces.iter().map(|piece| (piece.channel, piece.offset, text(std::slice::from_ref(piece)))).collect();
    let expected = [
        (Channel::Stdout, 0, "abc"),
        (Channel::Stdout, 3, "def"),
        (Channel::Stdout, 6, "gh"),
        (Channel::Stdout, 100, "end"),
        (Channel::Stderr, 0, "oops"),
    ];
    assert_eq!(told, expected.map(|(channel, offset, text)| (channel, offset, text.to_owned())));
    assert_eq!(log.known(task).unwrap(), Known { stdout: 103, stderr: 4 });
}

#[test]
fn attempts_and_channels_are_read_apart_or_together() {
    let dir = tempdir().unwrap();
    let log = open(&dir, SMALL);
    let (first, second, other) = (attempt(1, 1), attempt(1, 2), attempt(2, 1));
    log.append(&[record(first, Channel::Stdout, 0, "1"), record(other, Channel::Stdout, 0, "x")]).unwrap();
    log.append(&[record(first, Channel::Stderr, 0, "2"), record(second, Channel::Stdout, 0, "3")]).unwrap();
    assert_eq!(text(&read(&log, all_of(first), 1)), "123");
    assert_eq!(text(&read(&log, Wanted { attempt: Some(2), ..all_of(first) }, 1)), "3");
    assert_eq!(text(&read(&log, Wanted { channel: Some(Channel::Stdout), ..all_of(first) }, 9)), "13");
    assert_eq!(read(&log, all_of(attempt(3, 1)), 9), []);
}

#[test]
fn who_follows_goes_on_where_it_was_and_one_from_another_log_begins_anew() {
    let dir = tempdir().unwrap();
    let log = open(&dir, SMALL);
    let task = attempt(1, 1);
    fill(&log, task, 30);
    let page = log.read(all_of(task), Position::default(), usize::MAX).unwrap();
    assert!(page.end && page.pieces.len() == 30);
    let later = log.read(all_of(task), page.pieces[27].position, usize::MAX).unwrap();
    assert_eq!(later.pieces, page.pieces[28..]);
    log.append(&[record(task, Channel::Stdout, 3000, "more")]).unwrap();
    assert_eq!(text(&log.read(all_of(task), page.next, 9).unwrap().pieces), "more");
    let foreign = Position::from_number(u64::MAX);
    assert_eq!(log.read(all_of(task), foreign, usize::MAX).unwrap().pieces.len(), 31);
}

#[test]
fn a_log_that_is_opened_again_goes_on_where_it_was() {
    let dir = tempdir().unwrap();
    let (task, done) = (attempt(7, 1), attempt(5, 3));
    {
        let log = open(&dir, SMALL);
        log.append(&[record(done, Channel::Stderr, 0, "early")]).unwrap();
        log.settled(done);
        fill(&log, task, 50);
    }
    let log = open(&dir, SMALL);
    assert_eq!(log.known(task).unwrap(), Known { stdout: 5000, stderr: 0 });
    assert_eq!(log.known(done).unwrap(), Known { stdout: 0, stderr: 5 });
    assert_eq!(log.known(attempt(7, 2)).unwrap(), Known::default());
    log.append(&[record(task, Channel::Stdout, 4990, "0123456789end")]).unwrap();
    let pieces = read(&log, all_of(task), 300);
    assert!(text(&pieces).ends_with("49\nend") && pieces.len() == 51);
}

#[test]
fn wherever_a_crash_cuts_the_last_segment_what_was_whole_before_it_stays() {
    let whole = tempdir().unwrap();
    let task = attempt(1, 1);
    let log = open(&whole, Limits::default());
    let mut ends = vec![0];
    for (number, line) in ["one", "two", "three"].into_iter().enumerate() {
        log.append(&[record(task, Channel::Stdout, number as u64 * 10, line)]).unwrap();
        ends.push(fs::metadata(log_path(whole.path(), 1)).unwrap().len());
    }
    let bytes = fs::read(log_path(whole.path(), 1)).unwrap();
    for cut in 0..=bytes.len() {
        let dir = tempdir().unwrap();
        fs::write(log_path(dir.path(), 1), &bytes[..cut]).unwrap();
        let log = open(&dir, Limits::default());
        let left = ends.iter().filter(|end| **end > 0 && **end <= cut as u64).count();
        assert_eq!(read(&log, all_of(task), 99).len(), left, "cut at {cut}");
        log.known(task).unwrap();
        log.append(&[record(task, Channel::Stdout, 500, "after")]).unwrap();
        let log = open(&dir, Limits::default());
        let pieces = read(&log, all_of(task), 99);
        assert_eq!((pieces.len(), text(&pieces[left..])), (left + 1, "after".to_owned()), "cut at {cut}");
    }
}

#[test]
fn nothing_that_a_task_writes_passes_for_a_record() {
    let dir = tempdir().unwrap();
    let (task, victim) = (attempt(1, 1), attempt(2, 1));
    let mut forged = Vec::new();
    record::encode(victim, Channel::Stdout, 0, b"forged", &mut forged);
    {
        let log = open(&dir, Limits::default());
        let data = Bytes::from(forged);
        log.append(&[OutputRecord { task, channel: Channel::Stdout, offset: 0, data }]).unwrap();
        // What is torn before it does not make it one either.
        log.append(&[record(task, Channel::Stderr, 0, "x")]).unwrap();
    }
    let path = log_path(dir.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes[4] ^= 1;
    for bytes in [fs::read(&path).unwrap(), bytes] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(read(&open(&dir, Limits::default()), all_of(victim), 9), []);
    }
}

#[test]
fn a_missing_or_damaged_index_is_made_anew() {
    let dir = tempdir().unwrap();
    let task = attempt(1, 1);
    fill(&open(&dir, SMALL), task, 60);
    let before = text(&read(&open(&dir, SMALL), all_of(task), 500));
    fs::remove_file(index_path(dir.path(), 1)).unwrap();
    let second = index_path(dir.path(), 2);
    let mut bytes = fs::read(&second).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&second, bytes).unwrap();
    fs::write(dir.path().join("00000003.new"), "half").unwrap();
    let log = open(&dir, SMALL);
    assert_eq!(text(&read(&log, all_of(task), 500)), before);
    assert!(index::is_whole(&second).unwrap());
    assert!(!file_names(&dir).iter().any(|name| name.ends_with(".new")));
}

#[test]
fn a_missing_segment_is_missing_output_and_no_more() {
    let dir = tempdir().unwrap();
    let task = attempt(1, 1);
    fill(&open(&dir, SMALL), task, 60);
    let whole = read(&open(&dir, SMALL), all_of(task), 500);
    fs::remove_file(log_path(dir.path(), 2)).unwrap();
    let log = open(&dir, SMALL);
    let left = read(&log, all_of(task), 500);
    assert!(left.len() < whole.len() && left.iter().all(|piece| whole.contains(piece)));
    assert_eq!(log.known(task).unwrap().stdout, 6000);
    assert!(!index_path(dir.path(), 2).exists());
}

#[test]
fn a_crash_between_sealing_a_segment_and_beginning_the_next_loses_nothing() {
    let dir = tempdir().unwrap();
    let task = attempt(1, 1);
    let log = open(&dir, SMALL);
    fill(&log, task, 5);
    log.lock().active.index.write(&index_path(dir.path(), 1)).unwrap();
    drop(log);
    let log = open(&dir, SMALL);
    log.known(task).unwrap();
    log.append(&[record(task, Channel::Stdout, 500, "next")]).unwrap();
    assert!(log_path(dir.path(), 2).exists());
    assert_eq!(read(&log, all_of(task), 500).len(), 6);
}

#[test]
fn the_oldest_segments_go_when_there_is_too_much_and_when_they_are_too_old() {
    let dir = tempdir().unwrap();
    let task = attempt(1, 1);
    let limits = Limits { total: 6000, ..SMALL };
    let log = open(&dir, limits);
    fill(&log, task, 100);
    let kept: u64 = log.lock().sealed.values().sum();
    assert!(kept <= 6000 && kept > 2000, "{kept}");
    let pieces = read(&log, all_of(task), 500);
    assert!(pieces[0].offset > 0 && pieces.last().unwrap().offset == 9900);
    let later = SystemTime::now() + limits.age + Duration::from_secs(60);
    assert!(log.prune(later).unwrap() > 0);
    let logs = file_names(&dir).iter().filter(|name| name.ends_with(".log")).count();
    assert_eq!(logs, 1, "{:?}", file_names(&dir));
    // Places only grow, whatever went before them.
    let number = log.lock().active.number;
    drop(log);
    assert_eq!(open(&dir, limits).lock().active.number, number);
}

#[test]
fn a_record_that_was_whole_once_and_is_not_any_more_is_told() {
    let dir = tempdir().unwrap();
    let task = attempt(1, 1);
    let log = open(&dir, Limits::default());
    log.append(&[record(task, Channel::Stdout, 0, "precious")]).unwrap();
    let path = log_path(dir.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = log.read(all_of(task), Position::default(), 9).unwrap_err();
    assert!(error.to_string().ends_with("is damaged at byte 0"), "{error}");
}

#[test]
fn output_of_others_in_between_does_not_hide_a_tasks_own() {
    let dir = tempdir().unwrap();
    let log = open(&dir, Limits::default());
    let (task, loud) = (attempt(1, 1), attempt(2, 1));
    let noise = "x".repeat(record::DATA_MAX);
    for round in 0..5 {
        log.append(&[record(task, Channel::Stdout, round, &round.to_string())]).unwrap();
        log.append(&[record(loud, Channel::Stdout, round * 2 * noise.len() as u64, &noise.repeat(2))]).unwrap();
    }
    assert_eq!(log.lock().active.index.of(task.task).len(), 5, "each lies in an extent of its own");
    assert_eq!(text(&read(&log, all_of(task), 2)), "01234");
    assert_eq!(read(&log, all_of(loud), 1).len(), 10);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is appended in whatever portions, with lives that end in between, reads back: of each attempt
    /// and channel all of it, in order.
    #[test]
    fn what_is_appended_reads_back(
        writes in prop::collection::vec((0..3u128, 1..3u32, any::<bool>(), 1..400usize, any::<bool>()), 1..120),
        page in 1..2000usize,
    ) {
        let dir = tempdir().unwrap();
        let mut log = open(&dir, SMALL);
        let mut model: BTreeMap<(TaskRef, Channel), Vec<u8>> = BTreeMap::new();
        for (number, (task, number_of_attempt, is_stderr, length, reopens)) in writes.into_iter().enumerate() {
            let (task, channel) = (attempt(task, number_of_attempt), if is_stderr { Channel::Stderr } else { Channel::Stdout });
            if reopens {
                drop(log);
                log = open(&dir, SMALL);
            }
            log.known(task).unwrap();
            let written = model.entry((task, channel)).or_default();
            let offset = written.len() as u64;
            let data: Vec<u8> = (0..length).map(|at| (at * 7 + number) as u8).collect();
            written.extend(&data);
            log.append(&[OutputRecord { task, channel, offset, data: data.into() }]).unwrap();
        }
        for log in [log, open(&dir, SMALL)] {
            for ((task, channel), written) in &model {
                let wanted = Wanted { task: task.task, attempt: Some(task.attempt), channel: Some(*channel) };
                let pieces = read(&log, wanted, page);
                prop_assert_eq!(pieces.iter().map(|piece| piece.data.clone()).collect::<Vec<_>>().concat(), written.clone());
                prop_assert_eq!(log.known(*task).unwrap().of(*channel), written.len() as u64);
            }
        }
    }
}

#[test]
fn what_is_durable_is_known_and_only_what_came_since_is_not() {
    let dir = tempdir().unwrap();
    let log = open(&dir, SMALL);
    assert!(log.is_durable());
    fill(&log, attempt(1, 1), 5);
    assert!(!log.is_durable());
    log.sync().unwrap();
    assert!(log.is_durable());
    // Into the next segment, before which this one is sealed.
    fill(&log, attempt(2, 1), 20);
    assert!(!log.is_durable());
    log.sync().unwrap();
    assert!(log.is_durable());
    drop(log);
    assert!(open(&dir, SMALL).is_durable(), "what a new life finds was made durable when it was opened");
}
