//! The newest two releases of the distribution's cloud kernel that are wholly in the archive.
//!
//! Comes in: `apt-cache`. Decided: the series is that of the `linux-image-cloud-amd64` meta-package; a release counts
//! when its signed image, its debug package and the source package of the same version exist; two of the same upstream
//! version are one. Goes out: [`Release`]s, newest first.

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

/// The newest two, newest first.
///
/// # Errors
/// A sentence that says what the archive lacks.
pub fn newest_two(apt: &mut Apt, say: &dyn Fn(&str)) -> Result<[Release; 2], String> {
    apt.refresh(say);
    let run = |args: &[&str]| output(Path::new("/"), args).map_err(|error| error.to_string());
    let policy = run(&["apt-cache", "policy", META])?;
    let candidate = candidate(&policy).ok_or_else(|| format!("apt-cache knows no {META}"))?;
    let series = series(candidate).ok_or_else(|| format!("{META} has version {candidate}, expected X.Y.Z-N"))?;
    let source_package = format!("linux-source-{series}");
    let pattern = format!("^linux-image-{}\\..*cloud-amd64(-dbg)?$", series.replace('.', "\\."));
    let names = run(&["apt-cache", "search", "--names-only", &pattern])?;
    let mut names: Vec<&str> = names.lines().filter_map(|line| line.split_whitespace().next()).collect();
    names.push(&source_package);
    let mut args = vec!["apt-cache", "madison"];
    args.extend(&names);
    let releases = complete_releases(&run(&args)?, &source_package);
    let mut by_upstream: Vec<Release> = Vec::new();
    for release in releases {
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

/// The version that apt would install.
fn candidate(policy: &str) -> Option<&str> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then_some(version)
}

/// Releases whose image, debug and source package have one version in `apt-cache madison`; newest first.
fn complete_releases(madison: &str, source_package: &str) -> Vec<Release> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in madison.lines().filter(|line| !line.ends_with(" Sources")) {
        let mut columns = line.split('|').map(str::trim);
        if let (Some(name), Some(version)) = (columns.next(), columns.next()) {
            versions.entry(name).or_default().push(version);
        }
    }
    let has = |package: &str, version: &str| versions.get(package).is_some_and(|list| list.contains(&version));
    let mut releases = Vec::new();
    for (&image, list) in &versions {
        let Some(release) = image.strip_prefix("linux-image-").filter(|name| name.ends_with("-cloud-amd64")) else {
            continue;
        };
        for &version in list {
            if has(&format!("{image}-dbg"), version) && has(source_package, version) {
                releases.push(Release {
                    release: release.to_owned(),
                    version: version.to_owned(),
                    source_package: source_package.to_owned(),
                });
            }
        }
    }
    releases.sort_by(|one, two| compare_versions(&two.version, &one.version));
    releases.dedup();
    releases
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
        let found: Vec<_> = complete_releases(madison, "linux-source-6.1").into_iter().map(|one| one.release).collect();
        assert_eq!(found, ["6.1.0-3-cloud-amd64", "6.1.0-1-cloud-amd64"]);
    }

    #[test]
    fn parts_of_a_version() {
        assert_eq!((series("6.1.190-1"), upstream("6.1.190-1")), (Some("6.1"), "6.1.190"));
        assert_eq!(candidate("x:\n  Installed: (none)\n  Candidate: 6.1.192-2\n"), Some("6.1.192-2"));
        assert_eq!(candidate("x:\n  Candidate: (none)\n"), None);
    }
}
