//! Work that runs in the guest all the while: processes are made, files of /proc and tmpfs are read and written,
//! pipes are used, on every processor.
//!
//! Comes in: a guest, the words that a patched file may begin with. Decided: nothing. Goes out: [`Progress`], rounds
//! done and wrong reads seen so far, so that a test can tell that work went on and never saw half a patch.

use super::{Guest, GuestError};

/// A background load that was started.
#[derive(Debug)]
pub struct Load {
    cpus: u32,
}

/// What the load has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Rounds of all processors.
    pub rounds: u64,
    /// Rounds of the processor that did the fewest.
    pub fewest: u64,
    /// Reads whose first word was none of the permitted ones.
    pub wrong: u64,
}

/// One processor's work. `C` is its number, `F` the watched file, `W` the permitted first words of it.
const ROUND: &str = r#"
n=0; bad=0; d=/tmp/load
while :; do
  read -r first rest < $F
  case " $W " in *" $first "*) ;; *) bad=$((bad+1)); echo $bad > $d/bad$C; echo "$first $rest" >> $d/seen$C ;; esac
  cat /proc/loadavg /proc/self/status /proc/meminfo $F > $d/file$C
  cat $d/file$C | sort | tail -n 1 > $d/last$C
  ( : )
  n=$((n+1)); echo $n > $d/new$C; mv $d/new$C $d/rounds$C
done
"#;

impl Guest {
    /// Starts the load. It reads `file` in every round and counts reads that begin with none of `words`.
    ///
    /// # Errors
    /// [`GuestError`] when the guest does not answer.
    pub fn start_load(&mut self, file: &str, words: &[&str]) -> Result<Load, GuestError> {
        let cpus = self.run_ok("nproc")?.trim().parse().unwrap_or(1);
        let round = format!("F={file}; W='{}'; C=$1\n{ROUND}", words.join(" "));
        self.run_ok(&format!("mkdir -p /tmp/load; cat > /tmp/load.sh <<'EOF'\n{round}\nEOF"))?;
        self.run_ok(&format!(
            "c=0; while [ $c -lt {cpus} ]; do setsid taskset $((1<<c)) sh /tmp/load.sh $c >/tmp/load/err$c 2>&1 & c=$((c+1)); done"
        ))?;
        Ok(Load { cpus })
    }

    /// What the load has done so far.
    ///
    /// # Errors
    /// [`GuestError`] when the guest does not answer.
    pub fn load_progress(&mut self, load: &Load) -> Result<Progress, GuestError> {
        let (mut rounds, mut fewest, mut wrong) = (0, u64::MAX, 0);
        for cpu in 0..load.cpus {
            let text = self.run_ok(&format!(
                "cat /tmp/load/rounds{cpu} 2>/dev/null || echo 0; cat /tmp/load/bad{cpu} 2>/dev/null || echo 0"
            ))?;
            let mut numbers = text.lines().map(|line| line.trim().parse().unwrap_or(0_u64));
            let done = numbers.next().unwrap_or(0);
            rounds += done;
            fewest = fewest.min(done);
            wrong += numbers.next().unwrap_or(0);
        }
        Ok(Progress { rounds, fewest, wrong })
    }
}
