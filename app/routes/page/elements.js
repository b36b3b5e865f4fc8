// The parts of the page, by their ids.
export const element = Object.fromEntries([...document.querySelectorAll("[id]")].map((each) => [each.id, each]));
