//! A database that works in the guest: transfers between accounts, by SQLite, on the file system of the guest's disk.
//!
//! Comes in: a guest with a disk (`Config::disk`). Decided: nothing. Goes out: [`Work`]: transactions done so far, and everything
//! that was not as it must be: a failed statement, accounts that do not add up. Each processor has a database file of its own,
//! so that neither waits for the other's lock; caches are dropped now and then, so that files are read from the disk again.

use super::{Guest, GuestError};
use std::time::Duration;

/// A database that was started.
#[derive(Debug)]
pub struct Database {
    cpus: u32,
}

/// What the database has done so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Transactions, by processor.
    pub transactions: Vec<u64>,
    /// What was not as it must be, in the database's own words.
    pub errors: String,
}

impl Work {
    /// Transactions of all processors.
    pub fn total(&self) -> u64 {
        self.transactions.iter().sum()
    }

    /// Whether every processor has done so many more than before.
    pub fn is_beyond(&self, before: &Self, count: u64) -> bool {
        self.transactions.iter().zip(&before.transactions).all(|(now, then)| *now >= then + count)
    }
}

/// Time for checks of a whole database.
const CHECK: Duration = Duration::from_secs(120);

const SCHEMA: &str = "
PRAGMA auto_vacuum = FULL;
CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
CREATE TABLE history(id INTEGER PRIMARY KEY AUTOINCREMENT, source INTEGER NOT NULL, target INTEGER NOT NULL,
    amount INTEGER NOT NULL, note BLOB NOT NULL);
WITH RECURSIVE number(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM number WHERE i < 1000)
    INSERT INTO account SELECT i, 0 FROM number;
";

/// A transfer: rows come and go, so that blocks of the file system do, too.
const TRANSFER: &str = "
BEGIN IMMEDIATE;
INSERT INTO history(source, target, amount, note)
    VALUES (1 + abs(random() % 1000), 1 + abs(random() % 1000), abs(random() % 100), randomblob(3000));
UPDATE account SET balance = balance - (SELECT amount FROM history ORDER BY id DESC LIMIT 1)
    WHERE id = (SELECT source FROM history ORDER BY id DESC LIMIT 1);
UPDATE account SET balance = balance + (SELECT amount FROM history ORDER BY id DESC LIMIT 1)
    WHERE id = (SELECT target FROM history ORDER BY id DESC LIMIT 1);
DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - 150 - abs(random() % 50);
COMMIT;
";

/// One processor's work; what it gave to some must have been taken from others.
const ROUND: &str = r#"
C=$1; n=0; cd /var/bank
while [ ! -e stop ]; do
  sum=$(sqlite3 -bail -cmd '.timeout 30000' bank$C.db < round.sql 2>> errors) || echo "processor $C: sqlite3 ended with $?" >> errors
  [ "$sum" = 0 ] || echo "processor $C: the accounts add up to $sum" >> errors
  n=$((n+1)); [ $((n % 8)) = 0 ] && echo 3 > /proc/sys/vm/drop_caches
done
echo done > done$C
"#;

impl Guest {
    /// Makes the databases and starts to work on them.
    ///
    /// # Errors
    /// [`GuestError`] when the guest does not answer or has no SQLite.
    pub fn start_database(&mut self) -> Result<Database, GuestError> {
        let cpus: u32 = self.run_ok("nproc")?.trim().parse().unwrap_or(1);
        let put = |name: &str, text: &str| format!("cat > /var/bank/{name} <<'EOF'\n{text}EOF\n");
        self.run_ok(&format!("mkdir -p /var/bank; {}", put("schema.sql", SCHEMA)))?;
        self.run_ok(&put("transfer.sql", TRANSFER))?;
        self.run_ok(&put("work.sh", ROUND))?;
        self.run_ok(
            "cd /var/bank; : > errors; for i in 1 2 3 4 5; do cat transfer.sql; done > round.sql
             echo 'SELECT sum(balance) FROM account;' >> round.sql",
        )?;
        for cpu in 0..cpus {
            self.run_ok(&format!("sqlite3 -bail /var/bank/bank{cpu}.db < /var/bank/schema.sql"))?;
            let mask = 1_u64 << cpu;
            self.run_ok(&format!(
                "setsid taskset {mask:x} sh /var/bank/work.sh {cpu} < /dev/null > /var/bank/said{cpu} 2>&1 &"
            ))?;
        }
        Ok(Database { cpus })
    }

    /// What it has done so far.
    ///
    /// # Errors
    /// [`GuestError`] when the guest does not answer, or the database does not.
    pub fn database_work(&mut self, database: &Database) -> Result<Work, GuestError> {
        let count = "SELECT coalesce((SELECT seq FROM sqlite_sequence), 0)";
        let mut transactions = Vec::new();
        for cpu in 0..database.cpus {
            let text = self.run_ok(&format!("sqlite3 -cmd '.timeout 30000' /var/bank/bank{cpu}.db '{count}'"))?;
            transactions.push(text.trim().parse().unwrap_or(0));
        }
        let errors = self.run_ok("tail -n 20 /var/bank/errors /var/bank/said* | grep -v '^==>' | grep . || true")?;
        Ok(Work { transactions, errors: errors.trim().to_owned() })
    }

    /// The database's own check of all its files, while they are worked on; `ok` for each that is right.
    ///
    /// # Errors
    /// [`GuestError`] when the guest does not answer, or the database does not.
    pub fn check_database(&mut self, database: &Database) -> Result<Vec<String>, GuestError> {
        let mut said = Vec::new();
        for cpu in 0..database.cpus {
            let command = format!("sqlite3 -cmd '.timeout 60000' /var/bank/bank{cpu}.db 'PRAGMA integrity_check'");
            let answer = self.run_within(&command, CHECK)?;
            if answer.status != 0 {
                return Err(GuestError::Command { command, status: answer.status, output: answer.output });
            }
            said.push(answer.output.trim().to_owned());
        }
        Ok(said)
    }

    /// Ends the work; everything that was written is on the disk then, and its file system is not written to any more.
    ///
    /// # Errors
    /// [`GuestError`] when the guest does not answer.
    pub fn stop_database(&mut self, database: Database) -> Result<(), GuestError> {
        let ended: Vec<String> = (0..database.cpus).map(|cpu| format!("-e done{cpu}")).collect();
        self.run_within(
            &format!("cd /var/bank; touch stop; until [ {} ]; do sleep 1; done", ended.join(" -a ")),
            CHECK,
        )?;
        self.run_ok("sync; mount -o remount,ro /")?;
        Ok(())
    }
}
