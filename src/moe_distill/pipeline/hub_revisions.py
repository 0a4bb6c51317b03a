"""Refuse a revision of the hub that is no commit, unless the profile says that it may move until its first download."""

from moe_distill.config.corpus_keys import Hub
from moe_distill.config.params import unpinned_revisions
from moe_distill.config.profile import Profile
from moe_distill.errors import ConfigError
from moe_distill.utils.hub_commits import Kind, command_for_commit, is_commit, recorded_commit


def check_revisions(profile: Profile) -> tuple[list[ConfigError], list[str]]:
    """Errors and warnings of revisions that are no commits.

    One that has no `allow_unpinned: true` beside it is wrong, and the command that prints its commit is named. Of any
    other it is told what it was at its first download.
    """
    wrong, warnings = list[ConfigError](), list[str]()
    for key, each in unpinned_revisions(profile).items():
        kind: Kind = "dataset" if isinstance(each, Hub) else "model"
        command = command_for_commit(kind, each.repository, each.revision)
        if not each.allow_unpinned:
            what = f"`{key}.revision` is `{each.revision}`, which is no commit"
            why = "what it names can change between two runs, or between two sessions of one"
            follow = f"`{key}.allow_unpinned: true` records the commit of the first download, and keeps to it"
            wrong.append(ConfigError(what, why, f"write the commit that `{command}` prints; or {follow}"))
            continue
        commit = recorded_commit(kind, each.repository, each.revision)
        known = f"was {commit} at its first download, and stays so" if is_commit(commit) else "is not downloaded yet"
        warnings.append(f"`{key}.revision` is no commit: `{each.revision}` {known}")
    return wrong, warnings
