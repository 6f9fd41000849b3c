//! Signals, each within a limit of time.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tilevae::HostTensor;
use tilevae::io::{Origin, write_tensors};

use super::{Folder, has_ffmpeg, root};

/// How long anything may take here.
const LIMIT: Duration = Duration::from_mins(2);

/// A program that runs, whose standard error is read as it comes.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    heard: Vec<String>,
}

impl Running {
    /// Starts the program with signals as a terminal's shell leaves them, or ignored.
    #[expect(unsafe_code, reason = "signals of a child are set by a C function")]
    fn start(args: &[&str], folder: &Folder, ignored: &'static [libc::c_int]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tilevae"));
        command.args(args).current_dir(root("")).env("TMPDIR", folder.0.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let set = move || {
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                let disposition = if ignored.contains(&signal) { libc::SIG_IGN } else { libc::SIG_DFL };
                // SAFETY: signal(2) may be called between fork and exec.
                unsafe { libc::signal(signal, disposition) };
            }
            Ok(())
        };
        // SAFETY: only signal(2) is called.
        unsafe { command.pre_exec(set) };
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines, heard: Vec::new() }
    }

    /// Waits for a line that holds this.
    #[track_caller]
    fn wait_for(&mut self, part: &str) {
        let until = Instant::now() + LIMIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|error| panic!("{part}: {error}; heard: {:?}", self.heard));
            let is_it = line.contains(part);
            self.heard.push(line);
            if is_it {
                return;
            }
        }
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status().unwrap().success());
    }

    /// How it ended, and all that it said.
    #[track_caller]
    fn end(mut self) -> (ExitStatus, String) {
        let until = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > until {
                let _ = self.child.kill();
                panic!("it does not end; heard: {:?}", self.heard);
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        self.heard.extend(self.lines.iter());
        (status, self.heard.join("\n"))
    }
}

/// Latents of a square image, by its side in px.
fn large(folder: &Folder, px: usize) -> String {
    let path = folder.path("large.safetensors");
    let latents = HostTensor::from_fn([1, 16, 1, px / 8, px / 8], |[_, c, _, y, x]| ((c * 31 + y * 17 + x * 7) % 23) as f32 / 11.0 - 1.0);
    write_tensors(path.as_ref(), &[("latents", &latents)], 4, Origin::default()).unwrap();
    path
}

#[test]
fn the_only_tile_and_the_last_are_stopped() {
    for (px, kind) in [(1024, "tiling.kind=off"), (640, "tiling.tile_px=512")] {
        let folder = Folder::new();
        let (input, out) = (large(&folder, px), folder.path("out.png"));
        let mut run = Running::start(&["decode", &input, "-o", &out, "--set", kind, "--format", "json"], &folder, &[]);
        let last = if kind.ends_with("off") { "\"tile_started\",\"worker\":0,\"tile\":0" } else { "\"tile_started\",\"worker\":0,\"tile\":3" };
        run.wait_for(last);
        run.signal("INT");
        let (status, said) = run.end();
        assert_eq!(status.code(), Some(130), "{said}");
        assert!(said.contains("stopping after this tile; again to stop at once") && said.contains("\"kind\":\"interrupted\""), "{said}");
        assert_eq!(folder.files(), ["large.safetensors"]);
    }
}

#[test]
fn people_are_told_that_the_run_stops() {
    let folder = Folder::new();
    let (input, out) = (large(&folder, 1024), folder.path("out.png"));
    let mut run = Running::start(&["decode", &input, "-o", &out, "--set", "tiling.kind=off", "-vv"], &folder, &[]);
    run.wait_for("TileStarted");
    run.signal("TERM");
    run.wait_for("stopping after this tile; again to stop at once");
    let (status, said) = run.end();
    assert!(status.code() == Some(130) && said.contains("error: the run was stopped"), "{status} {said}");
    assert_eq!(folder.files(), ["large.safetensors"]);
}

#[test]
fn a_second_signal_ends_it_at_once_and_leaves_nothing() {
    // Frames are first written inside the empty folder that exists.
    let names = ["out.png", "out.safetensors", "out.gif", "out.y4m", "frames", "there"];
    for name in names.into_iter().chain(has_ffmpeg().then_some("out.mp4")) {
        let folder = Folder::new();
        let input = large(&folder, 1024);
        if name == "there" {
            std::fs::create_dir(folder.path(name)).unwrap();
        }
        let mut run = Running::start(&["decode", &input, "-o", &folder.path(name), "--set", "tiling.kind=off", "--format", "json"], &folder, &[]);
        run.wait_for("tile_started");
        run.signal("INT");
        run.wait_for("stopping");
        let begun = Instant::now();
        run.signal("INT");
        let (status, said) = run.end();
        assert!(status.code() == Some(130) && begun.elapsed() < Duration::from_secs(20), "{status} {said}");
        let left: &[&str] = if name == "there" { &["large.safetensors", "there"] } else { &["large.safetensors"] };
        assert_eq!(folder.files(), left);
        assert!(name != "there" || std::fs::read_dir(folder.path(name)).unwrap().next().is_none());
    }
}

#[test]
fn without_a_run_the_first_signal_ends_it() {
    let folder = Folder::new();
    for name in ["l.safetensors", "p.png"] {
        let fifo = folder.path(name);
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        // Nobody ever writes to it; the other waits for the end of what comes.
        let out = folder.path("out.safetensors");
        for args in [&["plan", &fifo] as &[&str], &["encode", &fifo, "-o", &out], &["roundtrip", &fifo]] {
            for signal in ["INT", "TERM", "HUP"] {
                let run = Running::start(args, &folder, &[]);
                std::thread::sleep(Duration::from_millis(600));
                run.signal(signal);
                let (status, said) = run.end();
                assert_eq!(status.code(), Some(130), "{args:?} {signal}: {status:?} {:?} {said}", status.signal());
            }
        }
    }
    assert_eq!(folder.files(), ["l.safetensors", "p.png"]);
}

#[test]
fn signals_that_were_ignored_stay_ignored() {
    for (signal, number) in [("HUP", libc::SIGHUP), ("INT", libc::SIGINT)] {
        let folder = Folder::new();
        let (input, out) = (large(&folder, 512), folder.path("out.png"));
        let ignored: &'static [libc::c_int] = if number == libc::SIGHUP { &[libc::SIGHUP] } else { &[libc::SIGINT] };
        let mut run = Running::start(&["decode", &input, "-o", &out, "--set", "tiling.kind=off", "--format", "json"], &folder, ignored);
        run.wait_for("tile_started");
        run.signal(signal);
        let (status, said) = run.end();
        assert!(status.success() && !said.contains("stopping"), "{signal}: {status} {said}");
        assert_eq!(folder.files(), ["large.safetensors", "out.png"]);
    }
}

/// What waits for more input is ended, too.
#[test]
fn a_pipe_that_stays_open_does_not_hold_the_program() {
    let folder = Folder::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tilevae"));
    let mut child =
        child.args(["plan", "-"]).current_dir(root("")).env("TMPDIR", folder.0.path()).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert!(Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status().unwrap().success());
    let until = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(status.code() == Some(130) && folder.files().is_empty(), "{status} {said}");
}
