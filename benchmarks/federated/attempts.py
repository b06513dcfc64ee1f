"""What the study's page says beside its tables: the setting, and why each attempt at the gap was made."""

SETTING = """# Federated rounds on five real dermoscopy sites

Printed by `python benchmarks/federated/study.py --out docs/results/federated`; every run is in `federated.json`.

Five sites of very different size and class mix (306 to 2,768 training images, 7 classes, one site nearly all of one
class), 32 px, `popmi_vit_nano` from random weights (0.46 M), AdamW 1e-3, batches of 64, everyone the same start and
**20 local epochs in all**, however they are cut into rounds (`5 x 4`: epochs x rounds). One seed screens; more seeds
where it says so (`--deep NAMES --seeds N`): median (lowest to highest).

Figures are those of the last model: *val AUROC*, all sites' validation images pooled, is what may be chosen by; the
others are of test images: AUROC pooled, the *mean of the sites'* own AUROCs (what a site's class mix gives away
does not count there), the *worst site*, balanced accuracy, and AUROC *elsewhere*, on a test set no site trained on.
*To pooled* and *to best single*: distance in test AUROC
to training on all images in one place, and to the best of five models trained alone for 20 epochs (judged on all
sites' validation images). *Gap closed*: of the distance between plain averaging (4 rounds of 5 epochs) and pooled
training.

How much two seeds differ shows in the rows that have more; smaller differences between one-seed rows say nothing.
The runs were made at several commits on several machines, which do not end at the same weights. Made again on the last
one, seed 0 of `fedavg` 5 x 4 ended 0.013 lower in validation AUROC (federated_again.json, by `--cases` with its three
names; there plain average, OPM-Soup and learned maps end at the same weights, bit for bit); of 20 x 1 `fedavg` ended
0.021, `opm` 0.006 and `opm-regmean` 0.048 higher than in the JSON of commit a829972. Of the last machine, or one that
ends at the same weights, are all rows of 20 x 1 but best-single; of 1 x 20 all but fedavg, opm and opm-regmean;
adaptive-circuit 5 x 4; circuit, greedy-soup, best-single and Git Re-Basin by activations wherever crossed. What ends at
the same weights stands in the last table.

Server optimisers, the proximal term and control variates have one setting each (their papers' usual one), not tuned.
What is crossed with them are the rules that differ in rounds of 1 and 5 epochs. There Git Re-Basin by weights, hard
OT-Fusion, OPM's soups and learned maps find nothing to move and are plain averages, greedy OPM-Soup is the greedy soup
and RegMean the aligned one (last table, 5 x 4). After 20 epochs apart rules differ more: see the table of 20 x 1."""

ATTEMPTS = """Why each was made:

- **Momentum, gentle momentum.** The average of five updates is half as long as each of them (they agree in part only),
  so federated training is slower than pooled training at equal epochs. At the server, beta 0.5 doubles a steady step,
  0.9 makes ten of it.
- **Products always.** What OPM did before it averaged heads that have hardly moved as weights
  ([0008](../decisions/0008-products-after-long-training.md)).
- **PREA.** Sites with 306 images cannot learn from them that a lesion has no upright position; built in, nobody has
  to.
- **Every site once.** Weighted by examples the two largest sites, whose class mix is the most skewed, make two
  thirds of the average; the soup counts every site the same.
- **Calibrated, control variates.** Against drift by class mix: in the loss (logit adjustment by the site's own
  classes), and in the gradient (SCAFFOLD).
- **Norms stay local.** Cameras differ; each site's own gamma and beta may take that up (FedBN, Li et al. 2021,
  arXiv:2102.07623).
- **Head stays local.** Class mix pulls each site's head its own way, and their average is nobody's. What sites can
  share are features (FedPer, Arivazhagan et al. 2019, arXiv:1912.00818; FedRep, Collins et al. 2021,
  arXiv:2102.07078). With `opm` the site matches its whole model before it sends what is shared.
- **Own class mix.** No need to learn it: at a site every class is more likely by the site's frequency over that of all
  sites (Bayes' rule; Saerens et al. 2002, `personal.class_prior`). The model is the common one, its answers elsewhere
  do not change.
- **Gate every round.** The best of plain average, circuit, OPM-Soup and RegMean on validation images, in every
  round. Candidates are judged as they are, before the server's momentum moves them on: with momentum the choice is of
  another model than the one that goes out.
- **Aligned RegMean with momentum.** RegMean was ahead in the first round and behind later; with momentum its first
  step might last.
- **Learned maps, greedy OPM-Soup over rounds**: with the rules above. Maps learned between sites that share a start
  cost four points (test AUROC 0.764, seed 0); since then none is learned there, and the rule is OPM-Soup.

Mind the column *elsewhere*. A head of its own knows its site's class mix and cameras, and that is part of its gain; on
images from elsewhere (there answered by the mean of the five sites' models) it is worth less than a common model."""
