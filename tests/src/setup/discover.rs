//! Releases of the distribution's cloud kernel that are in the archive.
//!
//! Comes in: `apt-cache`. Decided: the series, unless one is given, is that of the `linux-image-cloud-amd64`
//! meta-package; a release is complete when its signed image, its debug package and the source package of the same
//! version exist; two of the same upstream version are one. Goes out: [`Release`]s, newest first.

use super::apt::{Apt, output};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::Path;

const META: &str = "linux-image-cloud-amd64";

/// A kernel release in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// As `uname -r` prints it.
    pub release: String,
    /// Version of its packages.
    pub version: String,
    /// Name of the source package (`linux-source-6.1`).
    pub source_package: String,
}

/// What the archive has of a series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Releases whose image, debug package and source are all there; newest first.
    pub complete: Vec<Release>,
    /// Versions of the source package; newest first.
    pub sources: Vec<String>,
}

/// The newest two, newest first.
///
/// # Errors
/// A sentence that says what the archive lacks.
pub fn newest_two(apt: &mut Apt, say: &dyn Fn(&str)) -> Result<[Release; 2], String> {
    let series = default_series(apt, say)?;
    let mut by_upstream: Vec<Release> = Vec::new();
    for release in archive(apt, &series, say)?.complete {
        if by_upstream.last().is_none_or(|last| upstream(&last.version) != upstream(&release.version)) {
            by_upstream.push(release);
        }
    }
    let found = by_upstream.len();
    let mut newest = by_upstream.into_iter();
    match (newest.next(), newest.next()) {
        (Some(newer), Some(older)) => Ok([newer, older]),
        _ => Err(format!("the archive has {found} complete cloud kernel releases of {series}, two are needed")),
    }
}

/// The series of the kernel that the distribution installs by default.
///
/// # Errors
/// A sentence that says what the archive lacks.
pub fn default_series(apt: &mut Apt, say: &dyn Fn(&str)) -> Result<String, String> {
    apt.refresh(say);
    let policy = run(&["apt-cache", "policy", META])?;
    let candidate = candidate(&policy).ok_or_else(|| format!("apt-cache knows no {META}"))?;
    let series = series(candidate).ok_or_else(|| format!("{META} has version {candidate}, expected X.Y.Z-N"))?;
    Ok(series.to_owned())
}

/// The newest series besides the default one of which the archive has a complete release.
///
/// # Errors
/// A sentence that says what the archive lacks.
pub fn other_series(apt: &mut Apt, say: &dyn Fn(&str)) -> Result<String, String> {
    let default = default_series(apt, say)?;
    let names = run(&["apt-cache", "search", "--names-only", "^linux-source-[0-9.]+$"])?;
    for series in series_of_sources(&names).into_iter().filter(|series| *series != default) {
        if !archive(apt, series, say)?.complete.is_empty() {
            return Ok(series.to_owned());
        }
    }
    Err(format!("the archive has complete cloud kernel releases of no series but {default}"))
}

/// Series of source packages, newest first.
fn series_of_sources(names: &str) -> Vec<&str> {
    let packages = names.lines().filter_map(|line| line.split_whitespace().next());
    let mut series: Vec<&str> = packages.filter_map(|name| name.strip_prefix("linux-source-")).collect();
    series.sort_by(|one, two| compare_versions(two, one));
    series
}

/// What the archive has of a series (`6.1`).
///
/// # Errors
/// A sentence that says what the archive lacks.
pub fn archive(apt: &mut Apt, series: &str, say: &dyn Fn(&str)) -> Result<Archive, String> {
    apt.refresh(say);
    let source_package = format!("linux-source-{series}");
    let pattern = format!("^linux-image-{}\\..*cloud-amd64(-dbg)?$", series.replace('.', "\\."));
    let names = run(&["apt-cache", "search", "--names-only", &pattern])?;
    let mut names: Vec<&str> = names.lines().filter_map(|line| line.split_whitespace().next()).collect();
    names.push(&source_package);
    let mut args = vec!["apt-cache", "madison"];
    args.extend(&names);
    Ok(Archive::of(&run(&args)?, &source_package))
}

fn run(args: &[&str]) -> Result<String, String> {
    output(Path::new("/"), args).map_err(|error| error.to_string())
}

/// The version that apt would install.
fn candidate(policy: &str) -> Option<&str> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then_some(version)
}

impl Archive {
    /// Reads what `apt-cache madison` printed.
    fn of(madison: &str, source_package: &str) -> Self {
        let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for line in madison.lines().filter(|line| !line.ends_with(" Sources")) {
            let mut columns = line.split('|').map(str::trim);
            if let (Some(name), Some(version)) = (columns.next(), columns.next()) {
                versions.entry(name).or_default().push(version);
            }
        }
        let has = |package: &str, version: &str| versions.get(package).is_some_and(|list| list.contains(&version));
        let mut complete = Vec::new();
        for (&image, list) in &versions {
            let Some(release) = image.strip_prefix("linux-image-").filter(|name| name.ends_with("-cloud-amd64")) else {
                continue;
            };
            for &version in list {
                if has(&format!("{image}-dbg"), version) && has(source_package, version) {
                    complete.push(Release {
                        release: release.to_owned(),
                        version: version.to_owned(),
                        source_package: source_package.to_owned(),
                    });
                }
            }
        }
        complete.sort_by(|one, two| compare_versions(&two.version, &one.version));
        complete.dedup();
        let mut sources: Vec<String> =
            versions.get(source_package).into_iter().flatten().map(|version| (*version).to_owned()).collect();
        sources.sort_by(|one, two| compare_versions(two, one));
        sources.dedup();
        Self { complete, sources }
    }

    /// The release that `cargo xtask corpus` starts from, or the only one.
    ///
    /// # Errors
    /// A sentence that says what the archive lacks.
    pub fn usual(&self) -> Result<Release, String> {
        let older = self.step(None, None).map(|(older, _)| older);
        older.or_else(|reason| self.complete.first().cloned().ok_or(reason))
    }

    /// Two versions with different upstream version: the newest that fits, and the newest complete release before it.
    /// A version may be given in full (`6.1.190-1`) or as upstream counts (`6.1.190`).
    ///
    /// # Errors
    /// A sentence that says what the archive lacks, and what it has.
    pub fn step(&self, from: Option<&str>, to: Option<&str>) -> Result<(Release, String), String> {
        let newer = self.sources.iter().find(|version| fits(version, to)).ok_or_else(|| {
            format!("the archive has no source of version {}; it has {}", to.unwrap_or("any"), self.sources.join(", "))
        })?;
        let older = self.complete.iter().find(|release| {
            fits(&release.version, from)
                && upstream(&release.version) != upstream(newer)
                && compare_versions(&release.version, newer) == Ordering::Less
        });
        let older = older.ok_or_else(|| {
            let complete: Vec<&str> = self.complete.iter().map(|release| release.version.as_str()).collect();
            let wanted = from.unwrap_or("any version");
            format!("the archive has no complete release ({wanted}) before {newer}; it has {}", complete.join(", "))
        })?;
        Ok((older.clone(), newer.clone()))
    }
}

/// Whether a version is the wanted one, given in full or without its revision.
pub fn fits(version: &str, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| version == wanted || upstream(version) == wanted)
}

/// `6.1` of `6.1.190-1`.
pub fn series(version: &str) -> Option<&str> {
    let second = version.match_indices('.').nth(1).map(|(at, _)| at)?;
    Some(&version[..second])
}

/// `6.1.190` of `6.1.190-1`.
pub fn upstream(version: &str) -> &str {
    version.rsplit_once('-').map_or(version, |(upstream, _)| upstream)
}

/// Order of versions without epoch: upstream part, then revision (Debian Policy, 5.6.12).
pub fn compare_versions(one: &str, two: &str) -> Ordering {
    let revision = |version: &str| version.rsplit_once('-').map_or("0".to_owned(), |(_, revision)| revision.to_owned());
    compare_parts(upstream(one), upstream(two)).then_with(|| compare_parts(&revision(one), &revision(two)))
}

/// Numbers by value, other text by letters, `~` before everything.
fn compare_parts(one: &str, two: &str) -> Ordering {
    let rank = |byte: Option<&u8>| match byte {
        Some(b'~') => -1,
        None => 0,
        Some(byte) if byte.is_ascii_digit() => 0,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(*byte),
        Some(byte) => i32::from(*byte) + 256,
    };
    let (mut one, mut two) = (one.as_bytes(), two.as_bytes());
    loop {
        let text = |bytes: &[u8]| bytes.first().is_some_and(|byte| !byte.is_ascii_digit());
        while text(one) || text(two) {
            match rank(one.first()).cmp(&rank(two.first())) {
                Ordering::Equal => (one, two) = (one.get(1..).unwrap_or_default(), two.get(1..).unwrap_or_default()),
                order => return order,
            }
        }
        let number = |bytes: &[u8]| bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (len_one, len_two) = (number(one), number(two));
        let digits = |bytes: &[u8], len: usize| {
            let start = bytes[..len].iter().take_while(|byte| **byte == b'0').count();
            bytes[start..len].to_vec()
        };
        let (left, right) = (digits(one, len_one), digits(two, len_two));
        match left.len().cmp(&right.len()).then_with(|| left.cmp(&right)) {
            Ordering::Equal => (one, two) = (&one[len_one..], &two[len_two..]),
            order => return order,
        }
        if one.is_empty() && two.is_empty() {
            return Ordering::Equal;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_debian_orders_them() {
        for (smaller, larger) in [
            ("6.1.99-1", "6.1.170-3"),
            ("6.1.192-1", "6.1.192-2"),
            ("6.1~rc1-1", "6.1-1"),
            ("6.1-1", "6.1+b1-1"),
            ("1.0", "1.0.1"),
        ] {
            assert_eq!(compare_versions(smaller, larger), Ordering::Less, "{smaller} {larger}");
            assert_eq!(compare_versions(larger, smaller), Ordering::Greater, "{larger} {smaller}");
        }
        assert_eq!(compare_versions("6.1.01-1", "6.1.1-1"), Ordering::Equal);
    }

    #[test]
    fn only_complete_releases_count() {
        let madison = "\
linux-image-6.1.0-3-cloud-amd64 | 6.1.20-1 | http://x y/main amd64 Packages
linux-image-6.1.0-3-cloud-amd64-dbg | 6.1.20-1 | http://x y/main amd64 Packages
linux-image-6.1.0-2-cloud-amd64 | 6.1.19-1 | http://x y/main amd64 Packages
linux-source-6.1 | 6.1.20-1 | http://x y/main amd64 Packages
linux-source-6.1 | 6.1.9-1 | http://x y/main amd64 Packages
linux-image-6.1.0-1-cloud-amd64 | 6.1.9-1 | http://x y/main amd64 Packages
linux-image-6.1.0-1-cloud-amd64-dbg | 6.1.9-1 | http://x y/main amd64 Packages
linux-image-6.1.0-1-cloud-amd64-unsigned | 6.1.9-1 | http://x y/main amd64 Packages
";
        let archive = Archive::of(madison, "linux-source-6.1");
        let found: Vec<_> = archive.complete.iter().map(|one| one.release.as_str()).collect();
        assert_eq!(found, ["6.1.0-3-cloud-amd64", "6.1.0-1-cloud-amd64"]);
        assert_eq!(archive.sources, ["6.1.20-1", "6.1.9-1"]);
    }

    #[test]
    fn a_step_is_between_two_upstream_versions() {
        let release = |version: &str| Release {
            release: "r".to_owned(),
            version: version.to_owned(),
            source_package: "s".to_owned(),
        };
        let archive = Archive {
            complete: ["6.1.3-2", "6.1.2-1", "6.1.1-1"].map(release).to_vec(),
            sources: ["6.1.3-2", "6.1.3-1", "6.1.2-1", "6.1.1-1"].map(str::to_owned).to_vec(),
        };
        let step = |from, to| archive.step(from, to).map(|(older, newer)| (older.version, newer));
        let owned = |older: &str, newer: &str| Ok((older.to_owned(), newer.to_owned()));
        assert_eq!(step(None, None), owned("6.1.2-1", "6.1.3-2"));
        assert_eq!(step(Some("6.1.1"), None), owned("6.1.1-1", "6.1.3-2"));
        assert_eq!(step(None, Some("6.1.3-1")), owned("6.1.2-1", "6.1.3-1"));
        assert_eq!(archive.usual().map(|found| found.version), Ok("6.1.2-1".to_owned()));
        let only = Archive { complete: vec![release("6.1.3-2")], sources: vec!["6.1.3-2".to_owned()] };
        assert_eq!(only.usual().map(|found| found.version), Ok("6.1.3-2".to_owned()));
        assert!(step(None, Some("6.1.1")).is_err_and(|reason| reason.contains("before 6.1.1-1")));
        assert!(step(None, Some("6.1.9")).is_err_and(|reason| reason.contains("6.1.3-1")));
    }

    #[test]
    fn series_come_newest_first() {
        let names = "linux-source-6.1 - Linux\nlinux-source-6.12 - Linux\nlinux-source-6.9 - Linux\n";
        assert_eq!(series_of_sources(names), ["6.12", "6.9", "6.1"]);
    }

    #[test]
    fn parts_of_a_version() {
        assert_eq!((series("6.1.190-1"), upstream("6.1.190-1")), (Some("6.1"), "6.1.190"));
        assert_eq!(candidate("x:\n  Installed: (none)\n  Candidate: 6.1.192-2\n"), Some("6.1.192-2"));
        assert_eq!(candidate("x:\n  Candidate: (none)\n"), None);
    }
}
