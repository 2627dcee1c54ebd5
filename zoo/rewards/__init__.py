"""Rewards by name.

A row is ``name: "module:class"``; the class is imported on first use (see ``zoo.load``).
"""

REWARDS = {
    "clap": "zoo.rewards.clap:ClapReward",
    "emotion": "zoo.rewards.mood:EmotionReward",
    "ensemble": "zoo.rewards.ensemble:EnsembleReward",
    "guards": "zoo.rewards.guards:GuardReward",
    "preference": "zoo.rewards.preference:PreferenceReward",
}
