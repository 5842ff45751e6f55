//! The box itself: what goes in, what comes out, and that a lost box is no failed command.

use lucos_tests::{boxed, commands, programs, require};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// `lucos-box`, or nothing where it cannot run.
fn lucos_box(name: &str) -> Option<Command> {
    let found = || {
        boxed::static_program(boxed::AGENT).map_err(|error| error.to_string())?;
        commands::program("lucos-box").map_err(|error| error.to_string())
    };
    let mut command = Command::new(require::or_skip(found())?);
    command.args(["--name", &format!("box-{name}")]);
    Some(command)
}

fn with_input(command: &mut Command, input: &[u8]) -> Output {
    let (input, mut child) = (input.to_vec(), start(command));
    let mut stdin = child.stdin.take().expect("a pipe");
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("ends");
    // The command need not read all of it.
    let _ = writer.join();
    output
}

fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(90), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn every_byte_passes_and_the_status_comes_back() {
    let Some(mut command) = lucos_box("bytes") else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(3_000_000).collect();
    let (sent, received) = (work.path().join("sent"), work.path().join("received"));
    std::fs::write(&sent, &bytes).expect("a file");
    command.arg("--file").arg(format!("{}:/deep/in/sent", sent.display()));
    command.arg("--out").arg(format!("/received:{}", received.display()));
    command.args(["--", "sh", "-c", "cat; cat /deep/in/sent > /received; echo told >&2; exit 7"]);
    let start = Instant::now();
    let output = with_input(&mut command, &bytes);
    eprintln!("a box with {} bytes through it: {} ms", 3 * bytes.len(), start.elapsed().as_millis());
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(7), "told\n"));
    assert!(output.stdout == bytes, "{} bytes of standard output", output.stdout.len());
    assert!(std::fs::read(&received).expect("was fetched") == bytes);
}

#[test]
fn a_file_that_is_not_there_is_told() {
    let Some(mut command) = lucos_box("no-file") else { return };
    let output = with_input(command.args(["--out", "/none:/tmp/none", "--", "true"]), b"");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("/none: No such file"), "{}", text(&output.stderr));
}

#[test]
fn a_command_that_is_not_there_is_told() {
    let Some(mut command) = lucos_box("no-command") else { return };
    let output = with_input(command.args(["--", "nonesuch"]), b"");
    assert_eq!(output.status.code(), Some(127), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("nonesuch did not start"), "{}", text(&output.stderr));
}

#[test]
fn a_signal_ends_the_command_first() {
    let Some(mut command) = lucos_box("signal") else { return };
    let script = "trap 'echo asked; exit 9' TERM; echo up; while :; do sleep 0.1; done";
    let mut child = start(command.args(["--", "sh", "-c", script]));
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut up = [0; 3];
    stdout.read_exact(&mut up).expect("the command is up");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("is there");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("ends");
    assert_eq!((child.wait().expect("ends").code(), rest.as_str()), (Some(9), "asked\n"));
}

#[test]
fn a_lost_box_is_no_failed_command() {
    let Some(mut command) = lucos_box("panic") else { return };
    let output = with_input(command.args(["--", "sh", "-c", "echo c > /proc/sysrq-trigger"]), b"");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(i32::from(boxed::LOST)), "{said}");
    assert!(said.starts_with("LOST BOX: "), "{said}");
    assert!(said.contains("Kernel panic - not syncing: sysrq triggered crash"), "{said}");

    let Some(mut command) = lucos_box("limit") else { return };
    let output = with_input(command.args(["--limit", "25", "--", "sleep", "1000"]), b"");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(i32::from(boxed::LOST)), "{said}");
    assert!(said.contains("the limit of 25 s was reached"), "{said}");
}

/// The client dies as it would by a crash: QEMU does not stay behind.
#[test]
fn the_box_ends_with_its_client() {
    let Some(mut command) = lucos_box("killed") else { return };
    let mut child = start(command.args(["--", "sh", "-c", "echo up; sleep 1000"]));
    let mut up = [0; 3];
    child.stdout.take().expect("a pipe").read_exact(&mut up).expect("the command is up");
    let qemu = children(child.id());
    assert_eq!(qemu.len(), 1, "{qemu:?}");
    child.kill().expect("is there");
    child.wait().expect("ends");
    wait_for("QEMU is still there", || !Path::new(&format!("/proc/{}/exe", qemu[0])).exists());
}

/// Processes whose parent is `parent` (proc(5), /proc/PID/stat: the second field behind the name).
fn children(parent: u32) -> Vec<u32> {
    let processes =
        std::fs::read_dir("/proc").expect("proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) == Some(&parent.to_string())
    };
    processes.filter(is_child).collect()
}

/// Many short connections to a socket that is opened in the box some time after the start: what comes back is what was sent.
#[test]
fn a_socket_of_the_box_is_reached_from_here() {
    let Some(mut command) = lucos_box("socket") else { return };
    let work = tempfile::tempdir().expect("a folder");
    let Some(echo) = require::or_skip(programs::compile("echo-socket", work.path())) else { return };
    let socket = work.path().join("socket");
    command.arg("--file").arg(&echo).arg("--forward").arg(format!("{}:/socket", socket.display()));
    let mut child = start(command.args(["--", "sh", "-c", "sleep 1; echo-socket /socket"]));
    wait_for("the socket is not opened", || socket.exists());
    for round in 0..50 {
        let len = if round % 10 == 0 { 700_000 } else { round };
        let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(len).collect();
        let mut stream = UnixStream::connect(&socket).expect("connects");
        let (mut writer, sent) = (stream.try_clone().expect("a second handle"), bytes.clone());
        let writing = std::thread::spawn(move || {
            writer.write_all(&sent)?;
            writer.shutdown(std::net::Shutdown::Write)
        });
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answers");
        writing.join().expect("no panic").expect("was taken");
        assert!(answer == bytes, "round {round}: {} of {len} bytes", answer.len());
    }
    drop(child.stdin.take());
    child.kill().expect("is there");
    child.wait().expect("ends");
}

/// KVM in the box is real: QEMU with nothing but KVM boots a stock kernel to its shell there.
#[test]
fn kvm_in_the_box_boots_a_stock_kernel() {
    let Some(kernel) = require::older_kernel() else { return };
    let Some(mut command) = lucos_box("kvm") else { return };
    let Some(qemu) = require::or_skip(programs::with_libraries("qemu-system-x86_64", "qemu-system-x86")) else {
        return;
    };
    let work = tempfile::tempdir().expect("a folder");
    let initrd = work.path().join("initrd");
    lucos_tests::initramfs::write(&initrd).expect("an initramfs");
    for file in qemu.iter().map(|path| path.as_path()).chain(programs::QEMU_LOADS.iter().map(Path::new)) {
        command.arg("--file").arg(file);
    }
    command.arg("--file").arg(format!("{}:/files/kernel", kernel.vmlinuz().display()));
    command.arg("--file").arg(format!("{}:/files/initrd", initrd.display()));
    let start_qemu = format!(
        "{} -L /files -accel kvm -cpu host -m 512 -display none -nodefaults -no-reboot -serial stdio -kernel kernel -initrd initrd \
         -append 'console=ttyS0 quiet panic=-1 LUCOS_REQUESTS=1'",
        programs::start_of("qemu-system-x86_64")
    );
    let input = "RUN 1 dW5hbWUgLXI=\nRUN 2 cG93ZXJvZmYgLWY=\n";
    let mut child = start(command.args(["--memory", "3072", "--", "sh", "-c", &start_qemu]));
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut stdin = child.stdin.take().expect("a pipe");
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    while !text(&said).contains("@@lucos-ready") {
        let count = stdout.read(&mut buffer).expect("reads");
        assert!(count > 0, "no shell: {}", text(&said));
        said.extend_from_slice(&buffer[..count]);
    }
    stdin.write_all(input.as_bytes()).expect("is taken");
    stdout.read_to_end(&mut said).expect("ends");
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(0), "{}\n{}", text(&said), text(&output.stderr));
    assert!(text(&said).contains("@@lucos-end 1 0"), "{}", text(&said));
}
