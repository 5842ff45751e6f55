//! The bundled hypervisor's devices, driven by the drivers of a stock kernel: Debian boots from its disk, with network and vsock.

use lucos_tests::boxed::{self, modules};
use lucos_tests::kernels::Kernel;
use lucos_tests::{commands, guest, initramfs, programs, require, setup};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Seconds that the box may live.
const LIMIT: &str = "1500";
/// Time for the guest's programs to be up, and for its end.
const LONG: Duration = Duration::from_secs(600);
/// Time for one command.
const SHORT: Duration = Duration::from_secs(120);
/// Times that something is tried that the guest may not be ready for.
const TRIES: u32 = 60;

/// The host's part, in the box: an interface for the guest, an echo at its port 1025, the guest, and then a look at its disk.
/// Nothing that stays in the background may hold the standard output, whose end is the end of the command.
const SCRIPT: &str = "tunctl -t tap0 >&2 && ifconfig tap0 192.168.77.1 netmask 255.255.255.0 up || exit 1
echo-socket /api.vsock_1025 > /dev/null 2>&1 &
taskset 1 lucos-hv run --engine kvm --kernel kernel --initrd initrd --cpus 2 --memory 384 --append 'root=/dev/vda quiet' \
    --disk disk --disk second,ro --net tap0 --vsock 3 --api /api
echo \"@@ended $?\"
kill $!
CHECK -fn disk >&2
echo \"@@checked $?\"";

/// `lucos-box` with the guest in it, and the guest's console.
struct Debian {
    child: Child,
    input: ChildStdin,
    said: Arc<Mutex<Vec<u8>>>,
    errors: Option<JoinHandle<String>>,
    asked: u32,
}

impl Debian {
    fn start(kernel: &Kernel, work: &Path, files: &[PathBuf]) -> Self {
        let initrd = work.join("initrd");
        let modules = modules::in_order(kernel, modules::OF_A_GUEST).expect("the modules of a stock kernel");
        initramfs::write_for_root(&initrd, &modules).expect("an initramfs");
        let mut command = Command::new(commands::program("lucos-box").expect("was looked for"));
        command.args(["--name", "root-file-system", "--limit", LIMIT, "--memory", "3072"]);
        command.arg("--forward").arg(format!("{}:/api.vsock", work.join("vsock").display()));
        command.arg("--file").arg(format!("{}:/files/kernel", kernel.vmlinuz().display()));
        for file in files.iter().chain([&initrd]) {
            command.arg("--file").arg(file);
        }
        let script = SCRIPT.replace("CHECK", &programs::start_of("e2fsck"));
        command.args(["--", "sh", "-c", &script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let input = child.stdin.take().expect("a pipe");
        let (output, mut errors) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
        let said = Arc::<Mutex<Vec<u8>>>::default();
        let heard = Arc::clone(&said);
        std::thread::spawn(move || listen(output, &heard));
        let errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            // What was read before an error is all there is to tell.
            let _ = errors.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Self { child, input, said, errors: Some(errors), asked: 0 }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().expect("no panic")).replace('\r', "")
    }

    /// Waits for a line with `mark`; gives what stands before the mark, from the byte `from`, and the rest of its line.
    fn wait(&mut self, from: usize, mark: &str, limit: Duration) -> (String, String) {
        let start = Instant::now();
        loop {
            // First, so that the last words of a box that has ended are looked at.
            let ended = self.child.try_wait().expect("a child");
            let text = self.text();
            let found = text.get(from..).and_then(|text| text.split_once(mark));
            if let Some((before, rest)) = found
                && let Some((line, _)) = rest.split_once('\n')
            {
                return (before.to_owned(), line.trim().to_owned());
            }
            if ended.is_some() || start.elapsed() > limit {
                self.fail(&format!("no {mark} within {} s; the box: {ended:?}", limit.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn fail(&mut self, what: &str) -> ! {
        let _ = self.child.kill();
        let errors = self.errors.take().map(|errors| errors.join().unwrap_or_default()).unwrap_or_default();
        panic!("{what}\n{}\n{errors}", self.text());
    }

    fn send(&mut self, line: &str) {
        self.input.write_all(line.as_bytes()).and_then(|()| self.input.flush()).expect("the console takes a line");
    }

    /// Logs in, as a person would.
    fn log_in(&mut self) {
        // Prompts are not ended; what a terminal shows next is.
        while !self.text().contains("debian login:") {
            let ended = self.child.try_wait().expect("a child");
            if ended.is_some() {
                self.fail(&format!("no login; the box: {ended:?}"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        self.send("root\n");
        // Read by the shell when it is there.
        self.run("stty -echo");
    }

    /// Runs a command that has to succeed; gives what it printed. Its mark is put together by the shell, so that the echo of what was
    /// typed has none.
    fn run(&mut self, command: &str) -> String {
        self.asked += 1;
        let (asked, from) = (self.asked, self.text().len());
        self.send(&format!("{command}; echo \"@@$(({asked})) $?\"\n"));
        let (output, status) = self.wait(from, &format!("@@{asked} "), SHORT);
        if status != "0" {
            self.fail(&format!("`{command}` ended with {status}: {output}"));
        }
        output
    }

    /// Runs a command whose output has to contain something.
    fn see(&mut self, command: &str, expected: &str) {
        let output = self.run(command);
        if !output.contains(expected) {
            self.fail(&format!("`{command}`: expected {expected:?}, seen {output:?}"));
        }
    }
}

fn listen(mut output: impl io::Read, said: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut buffer) {
        said.lock().expect("no panic").extend_from_slice(&buffer[..count]);
    }
}

/// A connection from the host to a port of the guest; what is sent comes back.
fn echo_of_the_guest(socket: &Path, port: u32, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SHORT))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if !line.starts_with("OK ") {
        return Err(io::Error::other(format!("the guest's answer: {line:?}")));
    }
    let (mut writer, sent) = (stream, bytes.to_vec());
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent)?;
        writer.shutdown(Shutdown::Write)
    });
    let mut answer = Vec::new();
    reader.read_to_end(&mut answer)?;
    writing.join().expect("no panic")?;
    Ok(answer)
}

#[test]
fn debian_boots_from_its_disk_with_network_and_vsock() {
    if !require::kvm_in_box("it needs a network interface of the host, and that of the box harms nobody") {
        return;
    }
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let found = || {
        commands::program("lucos-box").map_err(|error| error.to_string())?;
        boxed::static_program(boxed::AGENT).map_err(|error| error.to_string())?;
        let mut files = programs::with_libraries("e2fsck", "e2fsprogs")?;
        files.push(boxed::static_program("lucos-hv").map_err(|error| error.to_string())?);
        files.push(programs::compile("echo-socket", work.path())?);
        Ok((setup::root::cached()?, files))
    };
    let Some((image, mut files)) = require::or_skip(found()) else { return };
    let (disk, second) = (work.path().join("disk"), work.path().join("second"));
    std::fs::copy(image, &disk).expect("a disk");
    let contents: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(1 << 20).collect();
    std::fs::write(&second, &contents).expect("a second disk");
    files.extend([disk, second.clone()]);

    let start = Instant::now();
    let mut debian = Debian::start(&kernel, work.path(), &files);
    debian.log_in();
    eprintln!("at its login after {} s, the box included", start.elapsed().as_secs());
    debian.see("uname -r", &kernel.release);
    debian.see("cat /proc/1/comm; runlevel", "init\nN 2");

    // Its disks.
    debian.see("findmnt -no SOURCE,FSTYPE,OPTIONS /", "/dev/vda ext4 rw");
    let sum = "sha256sum < /root/file";
    let first = debian.run(&format!("dd if=/dev/urandom of=/root/file bs=1M count=8 conv=fsync 2> /dev/null; {sum}"));
    debian.run("echo 3 > /proc/sys/vm/drop_caches");
    debian.see(sum, first.trim());
    debian.see("cat /sys/block/vdb/ro", "1");
    debian.run("! dd if=/dev/zero of=/dev/vdb bs=512 count=1 2> /dev/null");
    let digest = digest_of(&second);
    debian.see("sha256sum < /dev/vdb", &digest);

    // Network, entropy.
    debian.see("ping -c 3 192.168.77.1", "3 packets transmitted, 3 received");
    debian.see("cat /sys/class/misc/hw_random/rng_current", "virtio_rng");
    debian.see("head -c 16 /dev/hwrng | wc -c", "16");

    // Vsock, from either side.
    debian.see("echo to the host | socat -t 30 - VSOCK-CONNECT:2:1025", "to the host\n");
    debian.run("socat VSOCK-LISTEN:1024,fork EXEC:cat < /dev/null > /dev/null 2>&1 & true");
    let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(300_000).collect();
    let socket = work.path().join("vsock");
    let mut answer = echo_of_the_guest(&socket, 1024, &bytes);
    for _ in 0..TRIES {
        if answer.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_secs(1));
        answer = echo_of_the_guest(&socket, 1024, &bytes);
    }
    match answer {
        Ok(answer) if answer == bytes => {}
        Ok(answer) => debian.fail(&format!("{} of {} bytes came back, or others", answer.len(), bytes.len())),
        Err(error) => debian.fail(&format!("vsock: {error}")),
    }

    let trouble = guest::warnings(&debian.run("dmesg"));
    assert!(trouble.is_empty(), "{trouble:?}");
    let from = debian.text().len();
    debian.send("poweroff\n");
    let (last, status) = debian.wait(from, "@@ended ", LONG);
    assert_eq!(status, "0", "{last}");
    let (_, checked) = debian.wait(from, "@@checked ", SHORT);
    if checked != "0" {
        debian.fail(&format!("e2fsck found fault with the disk: {checked}"));
    }
    let status = debian.child.wait().expect("ends");
    assert_eq!(status.code(), Some(0));
    eprintln!("from start to end: {} s", start.elapsed().as_secs());
}

/// SHA-256, as the guest's `sha256sum` prints it.
fn digest_of(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().expect("coreutils");
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().expect("a digest").to_owned()
}
