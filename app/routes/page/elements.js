// The page's elements by id.
export const element = Object.fromEntries([...document.querySelectorAll("[id]")].map((each) => [each.id, each]));
