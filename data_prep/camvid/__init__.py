"""CamVid: street scenes filmed from a car, the 11-class version used with SegNet."""
