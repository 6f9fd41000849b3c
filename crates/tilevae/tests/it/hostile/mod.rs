//! Damaged files and texts: no input panics, hangs, or takes more memory than four times the file and 64 MiB.
//!
//! `seeds/` holds small valid files, a folder for each way in (`tools/make_seeds.py` makes them), `found/` what once went wrong. A test reads both, and then
//! a few thousand damaged seeds, in a process of its own, so that a crash is reported like any other fault. A case depends on its number and the seed alone.
//! `TILEVAE_FUZZ_CASES` and `TILEVAE_FUZZ_SEED` set others; `TILEVAE_FUZZ_FIRST` begins with a later one.

mod counting;
mod damage;
mod measure;
mod ways;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use ways::{WAYS, Way};

/// How long one case may take.
const TIME: Duration = Duration::from_secs(10);
/// Faults after which a test has seen enough.
const ENOUGH: usize = 10;

macro_rules! tests {
    ($($test:ident: $name:literal $cases:literal;)+) => {
        $(#[test]
        fn $test() {
            hold($name, $cases);
        })+

        const TESTED: &[&str] = &[$($name),+];
    };
}

tests! {
    safetensors: "safetensors" 3000;
    latent: "latent" 2000;
    npy: "npy" 3000;
    npz: "npz" 3000;
    torch: "torch" 3000;
    png: "png" 3000;
    jpeg: "jpeg" 3000;
    webp: "webp" 3000;
    tiff: "tiff" 3000;
    apng: "apng" 2000;
    webp_clip: "webp-clip" 2000;
    tiff_pages: "tiff-pages" 2000;
    gif: "gif" 3000;
    y4m: "y4m" 3000;
    kl_weights: "kl-weights" 1000;
    wan_weights: "wan-weights" 1000;
    wan22_weights: "wan22-weights" 1000;
    qwen_weights: "qwen-weights" 1000;
    single: "single" 2000;
    pickle: "pickle" 2000;
    wan_pickle: "wan-pickle" 1000;
    legacy_pickle: "legacy-pickle" 2000;
    kl_config: "kl-config" 2000;
    wan_config: "wan-config" 2000;
    wan22_config: "wan22-config" 1000;
    qwen_config: "qwen-config" 1000;
    index: "index" 2000;
    toml: "toml" 3000;
    overrides: "override" 3000;
    device: "device" 3000;
    fps: "fps" 3000;
    size: "size" 3000;
}

#[test]
fn every_way_is_tested() {
    let names: Vec<&str> = WAYS.iter().map(|way| way.name).collect();
    assert_eq!(names, TESTED);
    for folder in ["seeds", "found"].map(data) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(TESTED.contains(&&*name) || name == FAULTY.name, "`{name}` is no way in");
        }
    }
}

#[test]
fn every_way_has_a_fuzz_target() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    let mut read = Vec::new();
    for (name, content) in files(&fuzz.join("targets")) {
        assert!(manifest.contains(&format!("path = \"targets/{name}\"")), "fuzz/Cargo.toml has no binary for targets/{name}");
        // What stands between quotes.
        read.extend(String::from_utf8(content).unwrap().split('"').skip(1).step_by(2).map(str::to_owned));
    }
    read.sort();
    let mut names = TESTED.to_vec();
    names.sort_unstable();
    assert_eq!(read, names);
}

fn data(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/hostile").join(folder)
}

/// The files of a folder, sorted by name; none of a folder that is not there.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())).collect();
    files.sort();
    files
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{text}`")))
}

/// Fails with what the cases of a way found.
fn hold(name: &str, cases: u64) {
    let cases = variable("TILEVAE_FUZZ_CASES").unwrap_or(cases);
    let faults = faults(name, cases, TIME);
    assert!(faults.is_empty(), "{name}: {} faults in {cases} cases\n{}", faults.len(), faults.join("\n"));
}

/// Runs the cases of a way in other processes, one after the other when they end early.
fn faults(name: &str, cases: u64, time: Duration) -> Vec<String> {
    let (mut first, mut faults) = (0, Vec::new());
    while faults.len() < ENOUGH {
        let folder = scratch();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "hostile::cases", "--ignored", "--nocapture"]).stdin(Stdio::null());
        let numbers = [("TILEVAE_FUZZ_CASES", cases), ("TILEVAE_FUZZ_BEGIN", first), ("TILEVAE_FUZZ_SECONDS", time.as_secs())];
        command.envs(numbers.map(|(name, value)| (name, value.to_string()))).env("TILEVAE_FUZZ_WAY", name).env("RUST_BACKTRACE", "0");
        command.env("TILEVAE_FUZZ_FOLDER", folder.path()).env("TMPDIR", folder.path()).env("TILEVAE_FUZZ_KEPT", kept_in());
        let output = command.output().unwrap();
        let read = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap_or_default();
        faults.extend(read(FAULTS).lines().map(str::to_owned));
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            assert!(folder.path().join(DONE).exists(), "{name}: no case was run: {said}");
            break;
        }
        // The last case that was begun ended the process.
        let begun = read(BEGUN);
        let (number, label) = begun.split_once(' ').unwrap_or_else(|| panic!("{name}: {said}"));
        if output.status.code() != Some(TOO_LONG) {
            let said = said.lines().find(|line| line.contains("memory allocation of") || line.contains("overflow")).unwrap_or_default();
            let way = way(name);
            let kept = keep(&ways::place(way, folder.path()).unwrap(), way, label);
            faults.push(format!("{label}: {}: {said}; {}", output.status, kept.display()));
        }
        first = number.parse::<u64>().unwrap() + 1;
    }
    faults
}

/// A way in that does what its bytes say, to see that it is seen.
const FAULTY: Way = Way::new("faulty", "case.txt", |path| {
    match &*fs::read_to_string(path)? {
        "panic" => panic!("on purpose"),
        "caught" => drop(std::panic::catch_unwind(|| panic!("on purpose"))),
        "thread" => drop(std::thread::spawn(|| panic!("on purpose")).join()),
        "memory" => drop(std::hint::black_box(vec![0_u8; 70 << 20])),
        "enormous" => drop(std::hint::black_box(vec![0_u8; 70 << 40])),
        "endless" => std::thread::sleep(TIME),
        "deep" => drop(std::hint::black_box(deeper(1))),
        "refused" => return Err("on purpose".into()),
        _ => {}
    }
    Ok(())
});

fn deeper(depth: u64) -> u64 {
    std::hint::black_box(depth) + if depth == u64::MAX { 0 } else { deeper(depth + 1) }
}

#[test]
fn faults_are_seen() {
    let found = faults("faulty", 0, Duration::from_secs(1));
    for (kind, expected) in [
        ("caught", "on purpose"),
        ("deep", "overflow"),
        ("endless", "took longer than 1 s"),
        ("enormous", "memory allocation of"),
        ("memory", "bytes of memory"),
        ("panic", "on purpose"),
        ("refused", "a valid file is refused: on purpose"),
        ("thread", "on purpose"),
    ] {
        let fault = found.iter().find(|fault| fault.starts_with(&format!("seed {kind}.txt: ")));
        assert!(fault.is_some_and(|fault| fault.contains(expected)), "{kind}: {found:?}");
    }
    assert!(!found.iter().any(|fault| fault.contains("fine.txt")), "{found:?}");
}

fn way(name: &str) -> &'static Way {
    WAYS.iter().chain([&FAULTY]).find(|way| way.name == name).unwrap()
}

/// A folder in memory, where there is one.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// The folder for temporary files; a process of cases has its own, which is deleted.
fn kept_in() -> PathBuf {
    std::env::var_os("TILEVAE_FUZZ_KEPT").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// Copies a file that something went wrong with to where it stays.
fn keep(file: &Path, way: &Way, label: &str) -> PathBuf {
    let folder = kept_in().join("tilevae-hostile").join(way.name);
    fs::create_dir_all(&folder).unwrap();
    let kept = folder.join(label.replace(['/', ' '], "-"));
    fs::copy(file, &kept).unwrap();
    kept
}

/// In the folder of a process: the case that was begun last.
const BEGUN: &str = "begun";
/// What went wrong.
const FAULTS: &str = "faults";
/// Is there when all cases were run.
const DONE: &str = "done";
/// The exit code of a process that ended itself for a case that took too long.
const TOO_LONG: i32 = 124;

#[test]
#[ignore = "the other tests run it in processes of their own"]
fn cases() {
    let Ok(name) = std::env::var("TILEVAE_FUZZ_WAY") else { return };
    let folder = PathBuf::from(std::env::var_os("TILEVAE_FUZZ_FOLDER").unwrap());
    let [cases, begin, seconds] = ["TILEVAE_FUZZ_CASES", "TILEVAE_FUZZ_BEGIN", "TILEVAE_FUZZ_SECONDS"].map(|name| variable(name).unwrap());
    let [seed, skipped] = ["TILEVAE_FUZZ_SEED", "TILEVAE_FUZZ_FIRST"].map(|name| variable(name).unwrap_or(0));
    let way = way(&name);
    let file = ways::place(way, &folder).unwrap();
    let beside: usize = way.beside.iter().map(|(_, content)| content.len()).sum();
    let seeds = files(&data("seeds").join(way.name));
    let found = files(&data("found").join(way.name));
    let contents: Vec<Vec<u8>> = seeds.iter().map(|(_, content)| content.clone()).collect();
    assert!(!seeds.is_empty(), "{name} has no seeds");

    measure::watch_panics();
    let mut faults = fs::File::create(folder.join(FAULTS)).unwrap();
    let mut report = |label: &str, fault: &str| {
        let kept = keep(&file, way, label);
        writeln!(faults, "{label}: {}; {}", fault.replace('\n', " "), kept.display()).unwrap();
    };
    // What is made once and kept is no matter of a single file.
    fs::write(&file, &contents[0]).unwrap();
    drop(measure::read(way, &file, usize::MAX / 8));

    let watchdog = Watchdog::start(Duration::from_secs(seconds), &folder, way, &file);
    let mut count = 0;
    let fixed = seeds.iter().map(|file| (true, file)).chain(found.iter().map(|file| (false, file)));
    let fixed = fixed.map(|(is_seed, (name, content))| {
        (format!("{} {name}", if is_seed { "seed" } else { "found" }), is_seed && !name.starts_with("odd-"), content.clone())
    });
    let damaged = (skipped..skipped.saturating_add(cases)).map(|case| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(case);
        (format!("case {case} of seed {seed}"), false, damage::damaged(&contents, &mut rng))
    });
    for (number, (label, is_valid, bytes)) in (0..).zip(fixed.chain(damaged)).skip(usize::try_from(begin).unwrap()) {
        fs::write(&file, &bytes).unwrap();
        fs::write(folder.join(BEGUN), format!("{number} {label}")).unwrap();
        watchdog.begin();
        let (outcome, wrong) = measure::read(way, &file, bytes.len() + beside);
        watchdog.end();
        let invalid = outcome.err().filter(|_| is_valid).map(|error| format!("a valid file is refused: {error}"));
        for fault in wrong.into_iter().chain(invalid) {
            report(&label, &fault);
            count += 1;
        }
        if count >= ENOUGH {
            break;
        }
    }
    fs::write(folder.join(DONE), "").unwrap();
}

/// Ends the process when a case takes too long.
struct Watchdog {
    start: Instant,
    /// When the case began, in milliseconds from `start`; 0 between cases.
    began: &'static AtomicU64,
}

impl Watchdog {
    fn start(time: Duration, folder: &Path, way: &'static Way, file: &Path) -> Self {
        static BEGAN: AtomicU64 = AtomicU64::new(0);
        let watchdog = Self { start: Instant::now(), began: &BEGAN };
        let (start, folder, file) = (watchdog.start, folder.to_owned(), file.to_owned());
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(100));
                let began = BEGAN.load(Relaxed);
                if began > 0 && start.elapsed() > Duration::from_millis(began) + time {
                    let begun = fs::read_to_string(folder.join(BEGUN)).unwrap_or_default();
                    let label = begun.split_once(' ').map_or("", |(_, label)| label);
                    let kept = keep(&file, way, label);
                    let mut faults = fs::File::options().append(true).open(folder.join(FAULTS)).unwrap();
                    writeln!(faults, "{label}: took longer than {} s; {}", time.as_secs(), kept.display()).unwrap();
                    std::process::exit(TOO_LONG);
                }
            }
        });
        watchdog
    }

    fn begin(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.began.store(now.max(1), Relaxed);
    }

    fn end(&self) {
        self.began.store(0, Relaxed);
    }
}
