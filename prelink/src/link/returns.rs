//! Where frames of an old function can go on in the new one.
//!
//! Comes in: a function that replaces another, both compiled. Decided: nothing; that is `diff_analyzer::returns`. Goes out: pairs of return
//! points in the bundle's record of the old function, and for the report what each is, or why there is none.

use super::{Key, Linker};
use diff_analyzer::pieces::PieceIndex;
use diff_analyzer::returns::{Moved, ReturnPoint, Why, points};
use lpk_format::ReturnPair;
use std::collections::BTreeSet;

/// The return points of a function, or why no frame of it can go on.
pub type Returns = Result<Vec<ReturnPoint>, Why>;

impl Linker<'_, '_> {
    /// Finds them for an old function that has been redirected.
    pub(super) fn find_returns(&mut self, key: Key, original: PieceIndex, address: u64) {
        let unit = &self.units[key.0];
        let moved = |unit: usize| {
            let plans = self.units[unit].data.iter().filter(|plan| plan.fate.moves());
            plans.map(|plan| plan.patched).collect::<BTreeSet<PieceIndex>>()
        };
        let all = (0..self.units.len()).flat_map(|unit| moved(unit).into_iter().map(move |piece| (unit, piece)));
        let global = all.map(|datum| self.piece(datum).1).filter(|piece| piece.global);
        let names: BTreeSet<String> = global.map(|piece| piece.name.clone()).collect();
        let moved = Moved { data: &moved(key.0), names: &names };
        let found = points((unit.original, original), (unit.patched, key.1), unit.diff, moved);
        let Some(function) = self.linked.functions.iter_mut().find(|function| function.old_address == address) else {
            return;
        };
        let pair = |point: &ReturnPoint| {
            let (old, new) = (u32::try_from(point.old), u32::try_from(*point.new.as_ref().ok()?));
            Some(ReturnPair { old: old.ok()?, new: new.ok()? })
        };
        function.returns = found.iter().flatten().filter_map(pair).collect();
        self.linked.returns.insert(address, found);
    }
}
