"""`pcb new-scale`: the scale of a data set of your own, as commented YAML that runs as it is.

    proposal = propose(Own(train="a.json", val="b.json", images="photos"))
    proposal.files      # path -> text: the scale, and a detector config where none shipped fits

Every value follows from the data or from a shipped scale, and its comment says how. What the files
leave open is an error that names the option which decides it.
"""

from pcb.planning.new_scale.own import Own, refuse_existing
from pcb.planning.new_scale.proposal import Proposal, propose

__all__ = ["Own", "Proposal", "propose", "refuse_existing"]
