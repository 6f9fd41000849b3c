//! Devices that other processes serve, on loopback.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::{Folder, max_diff, refused, root, run, samples, tilevae};

const LATENTS: &str = "examples/latents/chelsea.safetensors";
const TOKEN: &str = "TILEVAE_TOKEN";

/// A server that ends with the test.
struct Server {
    child: Child,
    devices: Vec<String>,
}

impl Server {
    fn start(args: &[&str], token: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tilevae"))
            .args(["worker", "--listen", "127.0.0.1:0", "-q"])
            .args(args)
            .current_dir(root(""))
            .env(TOKEN, token)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let count = if args.is_empty() { 1 } else { 2 };
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(count);
        let devices = lines.map(|line| line.unwrap().split(' ').next().unwrap().to_owned()).collect();
        Self { child, devices }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a decode on these devices and shows its events as they come. Gives the exit code, the events and what was printed. Nothing may hang: a run that
/// takes too long is killed, and has no exit code then.
fn watch(args: &[&str], devices: &str, mut on_event: impl FnMut(&str)) -> (Option<i32>, Vec<String>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tilevae"))
        .args(args)
        .args(["--format", "json", "--device", devices])
        .current_dir(root(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let [events, printed]: [Box<dyn std::io::Read>; 2] = [Box::new(child.stderr.take().unwrap()), Box::new(child.stdout.take().unwrap())];
    let (done, is_done) = mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if is_done.recv_timeout(Duration::from_mins(1)) == Err(mpsc::RecvTimeoutError::Timeout) {
            child.kill().unwrap();
        }
        child.wait().unwrap().code()
    });
    let mut lines = Vec::new();
    for line in BufReader::new(events).lines() {
        lines.push(line.unwrap());
        on_event(&lines[lines.len() - 1]);
    }
    let printed = std::io::read_to_string(printed).unwrap();
    drop(done);
    (guard.join().unwrap(), lines, printed)
}

/// The hash that a run printed.
fn hash(printed: &str) -> &str {
    printed.lines().find_map(|line| line.strip_prefix("sha256 ")).unwrap_or_else(|| panic!("{printed}"))
}

#[test]
fn two_servers_and_this_process_give_the_same_bytes() {
    let servers = [Server::start(&[], ""), Server::start(&["--set", "devices.cpu.workers=2"], "")];
    let all = format!("cpu,{}", servers.iter().flat_map(|server| server.devices.clone()).collect::<Vec<_>>().join(","));
    let folder = Folder::new();
    for (latents, model) in [(LATENTS, "models/demo-kl"), ("examples/latents/chelsea-clip.safetensors", "models/demo-wan")] {
        let out = folder.path("out.npy");
        let common = ["decode", latents, "-o", &out, "--hash", "--model", model, "--set", "tiling={kind=\"diffusers\",tile_px=96,stride_px=64}"];
        let expected = run(&common);
        for (devices, executor) in [(&servers[0].devices[0], "sequential"), (&all, "multi-device"), (&all, "pipelined")] {
            let printed = run(&[&common[..], &["--device", devices, "--set", &format!("executor.kind={executor}")]].concat());
            assert_eq!(hash(&printed), hash(&expected), "{executor}");
        }
    }
}

#[test]
fn an_untiled_image_comes_back_in_eight_bits() {
    let server = Server::start(&[], "");
    let folder = Folder::new();
    let decode = |out: &str, more: &[&str]| {
        let out = folder.path(out);
        let printed = run(&[&["decode", LATENTS, "-o", &out, "--format", "json"], more].concat());
        let printed: serde_json::Value = serde_json::from_str(&printed).unwrap();
        (std::fs::read(out).unwrap(), printed["workers"][0]["downloaded_bytes"].as_u64().unwrap())
    };
    let remote = ["--device", &server.devices[0]];
    let untiled = ["--set", "tiling.kind=off"];
    let (expected, in_f32) = decode("here.png", &untiled);
    assert_eq!(decode("there.png", &[remote, untiled].concat()), (expected, in_f32 / 3));
    // What is blended, or kept as it is, is not rounded before.
    let tiled = ["--set", "tiling={kind=\"diffusers\",tile_px=128}"];
    let (expected, in_f32) = decode("tiles.png", &tiled);
    assert_eq!(decode("tiles-there.png", &[remote, tiled].concat()), (expected, in_f32));
    let (expected, in_f32) = decode("here.npy", &untiled);
    assert_eq!(decode("there.npy", &[remote, untiled].concat()), (expected, in_f32));
}

#[test]
fn a_run_survives_a_server_that_is_killed() {
    let folder = Folder::new();
    let out = folder.path("out.npy");
    let common = ["decode", LATENTS, "-o", &out, "--hash", "--set", "tiling={kind=\"diffusers\",tile_px=32}"];
    let expected = run(&common);
    for executor in ["multi-device", "pipelined"] {
        let (mut victim, survivor) = (Server::start(&[], ""), Server::start(&[], ""));
        let devices = format!("{},{}", victim.devices[0], survivor.devices[0]);
        let executor = format!("executor.kind={executor}");
        let args = [&common[..], &["--set", &executor]].concat();
        let mut finished = 0;
        let (code, _, printed) = watch(&args, &devices, |event| {
            finished += usize::from(event.contains("\"event\":\"tile_finished\""));
            if finished == 20 {
                victim.child.kill().unwrap();
            }
        });
        assert!(code == Some(0) && finished > 100, "{code:?} {printed}");
        assert!(printed.contains(hash(&expected)) && printed.contains("\"retired\": \"tile "), "{printed}");
    }
}

/// Features stay on the servers that computed them. One that is lost takes its features along: the run begins again without it.
#[test]
fn features_stay_on_servers_and_are_computed_again_when_one_is_lost() {
    let folder = Folder::new();
    let out = folder.path("out.safetensors");
    let common = ["decode", LATENTS, "-o", &out, "--set", "tiling.tile_px=64"];
    run(&common);
    let expected = samples(&out).values;
    let (mut victim, survivor) = (Server::start(&[], ""), Server::start(&[], ""));
    let devices = format!("{},{}", victim.devices[0], survivor.devices[0]);
    let args = [&common[..], &["--set", "tiling.memory_mib=45", "--set", "executor.kind=multi-device", "-vv"]].concat();
    let agrees = || max_diff(&samples(&out).values, &expected) < 1e-4;
    let (code, lines, printed) = watch(&args, &format!("{devices},cpu"), |_| {});
    assert!(code == Some(0) && agrees(), "{code:?} {printed}");
    let stored: Vec<&String> = lines.iter().filter(|line| line.contains("features between")).collect();
    assert!(stored.len() == 1 && !stored[0].contains("took 0 bytes"), "{stored:?}");
    let mut finished = 0;
    let (code, lines, printed) = watch(&args, &devices, |event| {
        finished += usize::from(event.contains("\"event\":\"tile_finished\""));
        if finished == 100 {
            victim.child.kill().unwrap();
        }
    });
    assert!(code == Some(0) && agrees(), "{code:?} {printed} {lines:?}");
    assert!(lines.iter().any(|line| line.contains("begins again")), "{lines:?}");
}

#[test]
fn a_run_ends_when_every_server_is_gone() {
    let folder = Folder::new();
    let out = folder.path("out.npy");
    let mut server = Server::start(&["--set", "devices.cpu.workers=2"], "");
    let devices = server.devices.clone();
    let args = ["decode", LATENTS, "-o", &out, "--set", "tiling={kind=\"diffusers\",tile_px=32}", "--set", "executor.kind=multi-device"];
    let mut heard = 0;
    let (code, lines, _) = watch(&args, &devices.join(","), |_| {
        heard += 1;
        if heard == 20 {
            server.child.kill().unwrap();
        }
    });
    assert_eq!(code, Some(1));
    let causes = lines.last().unwrap();
    assert!(causes.contains("no worker is left") && devices.iter().all(|device| causes.contains(device)), "{causes}");
    assert!(folder.files().is_empty());
}

#[test]
fn servers_ask_for_their_token() {
    let server = Server::start(&[], "open sesame");
    let folder = Folder::new();
    let out = folder.path("out.png");
    let args = ["decode", LATENTS, "-o", &out, "--device", &server.devices[0]];
    assert!(refused(2, &args).contains("rejected the credential"));
    let with = |token: &str| Command::new(env!("CARGO_BIN_EXE_tilevae")).args(args).current_dir(root("")).env(TOKEN, token).output().unwrap();
    assert_eq!(with("open barley").status.code(), Some(2));
    assert!(with("open sesame").status.success());
    let absent = server.devices[0].replace("/0", "/9");
    assert!(refused(2, &["decode", LATENTS, "-o", &out, "--device", &absent]).contains("cannot be used"));
}

#[test]
fn addresses_that_cannot_be_served() {
    for (address, fragment) in [("0.0.0.0:0", TOKEN), ("nowhere", "cannot bind nowhere")] {
        let output = tilevae(&["worker", "--listen", address]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && message.contains(fragment) && output.stdout.is_empty(), "{message}");
    }
}
