//! From what a watch tells to what is to be looked at.
//!
//! A watch that lost its place lists everything anew, in pages, and the store has the old copies until the last of them.
//! Whoever looked earlier would find the old copy or none, and nothing would bring the object again: its generation is
//! known by then. So what a list brings is held back until the store has it.

use futures::{Stream, StreamExt, stream};
use kube::runtime::watcher::{self, Event};

use super::call::identity;
use crate::resource::PhaseManifest;

/// Objects to look at, each when the store that the same events fill has it. What a list brought is told by its identity
/// and generation only, and in its order.
///
/// `listed` is called whenever the store was filled anew, before the first of these.
pub fn applied(
    events: impl Stream<Item = watcher::Result<Event<PhaseManifest>>> + Send + 'static,
    mut listed: impl FnMut() + Send + 'static,
) -> impl Stream<Item = watcher::Result<PhaseManifest>> + Send + 'static {
    let mut held = Vec::new();
    let told = events.map(move |event| match event {
        Ok(Event::Apply(object)) => vec![Ok(object)],
        Ok(Event::Delete(_)) => Vec::new(),
        // Also after a page that failed: the list begins anew.
        Ok(Event::Init) => {
            held = Vec::new();
            Vec::new()
        }
        Ok(Event::InitApply(object)) => {
            // As large as spec and status otherwise, each of them, until the last page is here.
            let mut known = identity(&object);
            known.metadata.generation = object.metadata.generation;
            held.push(Ok(known));
            Vec::new()
        }
        Ok(Event::InitDone) => {
            listed();
            std::mem::take(&mut held)
        }
        Err(error) => vec![Err(error)],
    });
    told.flat_map(stream::iter)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use kube::runtime::{WatchStreamExt, reflector};

    use super::*;

    fn object(name: &str, generation: i64) -> PhaseManifest {
        let mut object = PhaseManifest::new(name, crate::resource::PhaseManifestSpec::default());
        object.metadata.namespace = Some("a".to_owned());
        object.metadata.uid = Some(format!("uid of {name}"));
        object.metadata.generation = Some(generation);
        object
    }

    /// What is told, each with the generation that the store has at that moment, and how often a list ended before it.
    fn told(events: Vec<Event<PhaseManifest>>) -> Vec<(String, Option<i64>, usize)> {
        let (store, writer) = reflector::store();
        let (lists, listed) = std::sync::mpsc::channel();
        let reflected = stream::iter(events.into_iter().map(Ok)).reflect(writer);
        let objects = applied(reflected, move || lists.send(()).unwrap());
        let mut count = 0;
        let seen = objects.map(|object| {
            let object = object.unwrap();
            count += listed.try_iter().count();
            let stored = store.get(&reflector::ObjectRef::from_obj(&object));
            let name = object.metadata.name.unwrap_or_default();
            (name, stored.and_then(|stored| stored.metadata.generation), count)
        });
        seen.collect().now_or_never().unwrap()
    }

    #[test]
    fn what_a_list_brings_is_told_when_the_store_has_it() {
        let events = vec![
            Event::Init,
            Event::InitApply(object("old", 1)),
            Event::InitDone,
            // The watch lost its place; meanwhile one was edited and one made. Their pages are not the last.
            Event::Init,
            Event::InitApply(object("new", 1)),
            Event::InitApply(object("old", 2)),
            Event::InitApply(object("last", 1)),
            Event::InitDone,
            Event::Apply(object("old", 3)),
        ];
        let expected = [("old", 1, 1), ("new", 1, 2), ("old", 2, 2), ("last", 1, 2), ("old", 3, 2)];
        let expected = expected.map(|(name, generation, lists)| (name.to_owned(), Some(generation), lists));
        assert_eq!(told(events), expected);
    }

    #[test]
    fn a_list_that_broke_off_tells_nothing() {
        let events = vec![
            Event::Init,
            Event::InitApply(object("gone", 1)),
            Event::Init,
            Event::InitApply(object("there", 1)),
            Event::InitDone,
        ];
        assert_eq!(told(events), [("there".to_owned(), Some(1), 1)]);
    }
}
